/** How strongly each token is shaded: a row, a column or what is received, of one head or averaged over several. */
import { edges, layers, n, received, sinks, type Layer } from "./data";
import type { Edges } from "./edges";

export interface Wanted {
  mode: "attends" | "attended" | "received";
  span: "head" | "layer" | "all";
  layer: number;
  head: number;
}

/** Turns a token into the weights of all tokens; what it needs is loaded once, with `progress` told the share that is there. */
export async function shader(wanted: Wanted, progress: (share: number) => void): Promise<(token: number) => Float32Array> {
  const places = placesOf(wanted);
  const gather = async <T>(load: (layer: number, head: number) => Promise<T>): Promise<T[]> => {
    const found: T[] = [];
    for (const [layer, head] of places) {
      found.push(await load(layer, head));
      progress(found.length / places.length);
    }
    return found;
  };
  if (wanted.mode === "received") {
    const mean = meanOf(await gather(async (layer, head) => weighed((await received(layer))[head]!, layers[layer]!)));
    return () => mean;
  }
  const heads = await gather(edges);
  return (token) => meanEdges(heads, token, wanted.mode === "attends");
}

/** The strongest value of the scale: the largest shown, or for what is received (where sinks tower) the 99.5th percentile. */
export function topOf(values: Float32Array, mode: Wanted["mode"]): number {
  if (mode !== "received") return Math.max(...chunkMaxima(values), 1e-6);
  return Math.max(values.toSorted()[Math.floor(0.995 * (n - 1))]!, 1e-6);
}

/** What is below the floor, and sinks where they are hidden, count for nothing. */
export function sifted(values: Float32Array, floor: number, hideSinks: boolean): Float32Array {
  return values.map((value, token) => (value < floor || (hideSinks && sinks.has(token)) ? 0 : value));
}

function placesOf({ span, layer, head }: Wanted): [number, number][] {
  if (span === "head") return [[layer, head]];
  return layers.flatMap((each, place) =>
    span === "all" || place === layer ? Array.from({ length: each.heads }, (_, of): [number, number] => [place, of]) : [],
  );
}

/** Received weight by evidence, as the summary ranks it: as if a quarter of all queries had seen the token besides and given it nothing. */
function weighed(mean: Float32Array, { causal, window }: Layer): Float32Array {
  const most = causal ? Math.min(window ?? n, n) : n;
  return mean.map((value, token) => {
    const share = causal ? Math.min(most, n - token) / most : 1;
    return (value * 5 * share) / (4 * share + 1);
  });
}

function meanOf(all: Float32Array[]): Float32Array {
  return all[0]!.map((_, token) => all.reduce((sum, values) => sum + values[token]!, 0) / all.length);
}

function meanEdges(heads: Edges[], token: number, row: boolean): Float32Array {
  const out = new Float32Array(n);
  for (const head of heads) for (const edge of row ? head.row(token) : head.column(token)) out[edge.token]! += edge.weight / heads.length;
  return out;
}

function chunkMaxima(values: Float32Array): number[] {
  return Array.from({ length: Math.ceil(n / 4096) }, (_, chunk) => Math.max(...values.subarray(chunk * 4096, (chunk + 1) * 4096)));
}
