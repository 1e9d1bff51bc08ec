/** How strongly each token is shaded: a row, a column, what is received, of one head or averaged over several; or surprise. */
import { edges, hasValues, isMarked, kept, layers, lengths, n, predictions, received, sinks, textsOf, type Layer, type Text } from "./data";
import type { Edges } from "./edges";
import { grainsOf, type Grain, type GrainName } from "./grain";
import { valueLengths, weights, type Measure } from "./weights";

export interface Wanted {
  mode: "attends" | "attended" | "received" | "surprise" | "kept";
  span: "head" | "layer" | "all";
  layer: number;
  head: number;
  measure: Measure;
  grain: GrainName;
}

const AT_ONCE = 18; // heads that are unpacked side by side

/** Unpacks all heads while nothing else is to do, so that their mean is there when it is asked for; returns what ends it. */
export function unpackAhead(): () => void {
  let ended = false;
  const idle = (): Promise<unknown> => new Promise((go) => ("requestIdleCallback" in window ? requestIdleCallback(go) : setTimeout(go, 50)));
  void (async () => {
    for (const [layer, { heads }] of layers.entries())
      for (let head = 0; head < heads; head++) {
        await idle();
        if (ended) return;
        await edges(layer, head);
      }
  })();
  return () => void (ended = true);
}

/** Which text is shaded, and in which a token is chosen for it. */
export function textsShaded({ mode, layer }: Wanted): [shaded: Text, chosen: Text] {
  const [rows, keys] = textsOf(layer);
  if (mode === "surprise") return [0, 0];
  return mode === "attended" ? [rows, keys] : [keys, rows];
}

export interface Shader {
  /** The weights of all tokens of the shaded text, for the chosen one. */
  of: (token: number) => Float32Array;
  /** What a weight of one comes to. */
  unit: number;
}

/** Shades by what is wanted; what it needs is loaded once, with `progress` told the share that is there. */
export async function shader(wanted: Wanted, progress: (share: number) => void): Promise<Shader> {
  const places = placesOf(wanted);
  const gather = async <T>(load: (layer: number, head: number) => Promise<T>): Promise<T[]> => {
    const found: T[] = [];
    for (let at = 0; at < places.length; at += AT_ONCE) {
      found.push(...(await Promise.all(places.slice(at, at + AT_ONCE).map(([layer, head]) => load(layer, head)))));
      progress(found.length / places.length);
    }
    return found;
  };
  const [rows, keys] = grainsOf(wanted.grain, wanted.layer);
  if (wanted.mode === "surprise") {
    const surprise = spread((await predictions()).logProbability.map((value) => (Number.isNaN(value) ? 0 : -value)), rows);
    return { of: () => surprise, unit: 0 };
  }
  if (wanted.mode === "kept") {
    const share = mean(meanOf(await gather(async (layer, head) => keptBy(layer, head))), keys);
    return { of: () => share, unit: 0 };
  }
  if (wanted.mode === "received") {
    const sums = spread(meanOf(await gather((layer, head) => receivedBy(layer, head, wanted.measure))), keys);
    return { of: () => sums, unit: 1 };
  }
  const heads = await gather((layer, head) => weights(layer, head, 0, wanted.measure, wanted.grain));
  const [from, to] = wanted.mode === "attends" ? [rows, keys] : [keys, rows];
  const of = (token: number): Float32Array => onTokens(meanEdges(heads.map(({ edges }) => edges), from.of[token]!, wanted.mode === "attends"), to);
  return { of, unit: Math.max(...heads.map(({ unit }) => unit)) };
}

/** The strongest value of the scale: the largest shown, or for what is received (where sinks tower) the 99.5th percentile. */
export function topOf(values: Float32Array, mode: Wanted["mode"]): number {
  if (mode === "kept") return 1;
  if (mode !== "received") return Math.max(...chunkMaxima(values), 1e-6);
  return Math.max(values.toSorted()[Math.floor(0.995 * (values.length - 1))]!, 1e-6);
}

/** What is below the floor, and sinks where they are hidden, count for nothing. */
export function sifted(values: Float32Array, floor: number, hideSinks: boolean): Float32Array {
  return values.map((value, token) => (value < floor || (hideSinks && sinks.has(token)) ? 0 : value));
}

function placesOf({ span, layer, head, measure, mode }: Wanted): [number, number][] {
  if (mode === "surprise") return [];
  if (span === "head") return [[layer, head]];
  const alike = (place: number): boolean => textsOf(place).join() === textsOf(layer).join() && (measure === "weight" || hasValues(place)) && (mode !== "kept" || isMarked(place));
  return layers.flatMap((each, place) =>
    (span === "all" && alike(place)) || place === layer ? Array.from({ length: each.heads }, (_, of): [number, number] => [place, of]) : [],
  );
}

/** Which tokens the head has left, for those who come to read. */
export async function keptBy(layer: number, head: number): Promise<Float32Array> {
  const heads = await kept(layer);
  return heads[Math.floor((head * heads.length) / layers[layer]!.heads)]!;
}

async function receivedBy(layer: number, head: number, measure: Measure): Promise<Float32Array> {
  const mean = weighed((await received(layer))[head]!, layers[layer]!);
  if (measure === "weight") return mean;
  const values = await valueLengths(layer, head);
  return mean.map((value, token) => value * values[token]!);
}

/** Received weight by evidence, as the summary ranks it: as if a quarter of all queries had seen the token besides and given it nothing. */
function weighed(mean: Float32Array, { causal, window }: Layer): Float32Array {
  const most = causal ? Math.min(window ?? mean.length, mean.length) : mean.length;
  return mean.map((value, token) => {
    const share = causal ? Math.min(most, mean.length - token) / most : 1;
    return (value * 5 * share) / (4 * share + 1);
  });
}

function meanOf(all: Float32Array[]): Float32Array {
  return all[0]!.map((_, token) => all.reduce((sum, values) => sum + values[token]!, 0) / all.length);
}

/** The sum over the tokens of each word, for all of them. */
function spread(values: Float32Array, { starts, n: units, text }: Grain): Float32Array {
  const out = new Float32Array(lengths[text]!);
  for (let unit = 0; unit < units; unit++) out.fill(values.subarray(starts[unit], starts[unit + 1]).reduce((sum, value) => sum + value, 0), starts[unit], starts[unit + 1]);
  return out;
}

/** The mean over the tokens of each word. */
function mean(values: Float32Array, grain: Grain): Float32Array {
  return spread(values, grain).map((sum, token) => sum / (grain.starts[grain.of[token]! + 1]! - grain.starts[grain.of[token]!]!));
}

/** The value of each word, for all of its tokens. */
function onTokens(values: Float32Array, { of }: Grain): Float32Array {
  return Float32Array.from(of, (unit) => values[unit]!);
}

function meanEdges(heads: Edges[], unit: number, row: boolean): Float32Array {
  const out = new Float32Array(n);
  for (const head of heads) for (const edge of row ? head.row(unit) : head.column(unit)) out[edge.token]! += edge.weight / heads.length;
  return out;
}

function chunkMaxima(values: Float32Array): number[] {
  return Array.from({ length: Math.ceil(values.length / 4096) }, (_, chunk) => Math.max(...values.subarray(chunk * 4096, (chunk + 1) * 4096)));
}
