/** The record as it lies in the page: a JSON header, and packed arrays that are unpacked when first asked for (see payload.py). */
import { Edges } from "./edges";

export interface Layer {
  index: number;
  name: string;
  heads: number;
  kv_heads: number;
  head_dim: number;
  causal: boolean;
  window: number | null;
  /** What computes A, softmax where nothing is said; whether weights are |A| over the row's sum of it. */
  mechanism?: string;
  shares?: boolean;
}

type Ranked = [layer: number, head: number, score: number][];

export interface Header {
  record: {
    model: { name: string; architecture: string; parameters: number };
    versions: Record<string, string>;
    command: string;
    created: string;
    tokens: number;
    prompt_tokens: number;
    rows: { count: number; seed: number } | null;
    layers: Layer[];
    cells: number;
    kept: boolean;
    summary: Record<"induction" | "previous_token" | "duplicate_token" | "sink" | "retrieval", Ranked> & {
      sink_positions: [token: number, share: number][];
      received: [token: number, share: number][];
    };
  };
  /** `names` are of tokens without a text; `parts` of those that end within a character: the token that has its text. */
  tokens: { ids: number[]; texts: string[]; special: boolean[]; names?: Record<number, string>; parts?: Record<number, number> };
  scores: Record<string, (number | null)[] | (number | null)[][]>[];
  threshold: number;
}

export const header: Header = JSON.parse(text("header"));
export const record = header.record;
export const layers = record.layers;
export const n = record.tokens;
/** Weights from here up are known exactly. */
export const threshold = header.threshold;
export const served = document.querySelector<HTMLMetaElement>("meta[name=regard-served]")?.content === "yes" && record.kept;

/** Positions whose keys the option "hide sinks" hides: special tokens, and those that hold a twentieth of all mass. */
export const sinks: ReadonlySet<number> = new Set([
  ...header.tokens.special.flatMap((special, token) => (special ? [token] : [])),
  ...record.summary.sink_positions.filter(([, share]) => share >= 0.05).map(([token]) => token),
]);

export const pooled = once((layer) => unpack(`${layers[layer]!.index}/pooled`).then(halves).then((all) => split(all, layers[layer]!.heads)));
export const received = once((layer) => perToken(layer, "received"));
export const entropyRows = once((layer) => perToken(layer, "entropy_rows"));

const edgesOf = once((place) => {
  const [layer, head] = [Math.floor(place / 4096), place % 4096];
  return unpack(`${layers[layer]!.index}/edges/${head}`).then((bytes) => new Edges(bytes, n));
});

export const edges = (layer: number, head: number): Promise<Edges> => edgesOf(layer * 4096 + head);

/** The side of the pooled maps: never more cells than tokens. */
export const cells = Math.min(record.cells, n);

function text(id: string): string {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page holds no ${id}: write it again with regard`);
  return element.textContent ?? "";
}

async function unpack(id: string): Promise<Uint8Array> {
  const packed = Uint8Array.from(atob(text(id)), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function perToken(layer: number, name: string): Promise<Float32Array[]> {
  const bytes = await unpack(`${layers[layer]!.index}/${name}`);
  const count = bytes.length / 3;
  const bits = new Uint32Array(count);
  for (let at = 0; at < count; at++) bits[at] = (bytes[at]! << 24) | (bytes[count + at]! << 16) | (bytes[2 * count + at]! << 8);
  return split(new Float32Array(bits.buffer), layers[layer]!.heads);
}

function halves(bytes: Uint8Array): Float32Array {
  const count = bytes.length / 2;
  const out = new Float32Array(count);
  for (let at = 0; at < count; at++) {
    const bits = (bytes[at]! << 8) | bytes[count + at]!;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    out[at] = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
  }
  return out;
}

function split(all: Float32Array, parts: number): Float32Array[] {
  const size = all.length / parts;
  return Array.from({ length: parts }, (_, part) => all.subarray(part * size, (part + 1) * size));
}

function once<T>(load: (key: number) => Promise<T>): (key: number) => Promise<T> {
  const loaded = new Map<number, Promise<T>>();
  return (key) => {
    if (!loaded.has(key)) loaded.set(key, load(key));
    return loaded.get(key)!;
  };
}
