/** The record as it lies in the page: a JSON header, and packed arrays that are unpacked when first asked for (see payload.py). */
import { Edges, numbers } from "./edges";
import type { Route } from "./flow";

export interface Layer {
  index: number;
  name: string;
  heads: number;
  kv_heads: number;
  head_dim: number;
  causal: boolean;
  window: number | null;
  scaling: number;
  softcap?: number | null;
  /** What computes A, softmax where nothing is said; whether weights are |A| over the row's sum of it. */
  mechanism?: string;
  shares?: boolean;
  /** Of an encoder–decoder: whose tokens the queries and the keys are. */
  reads?: [queries: Name, keys: Name];
}

type Name = "target" | "source";

type Ranked = [layer: number, head: number, score: number][];

/** A row of `regard heads`: roles and scores on stimuli of their own, and what the text's loss owes to the head. */
export type RolesRow = { layer: number; head: number; roles: string[] } & Record<string, number | null | string[]>;

export interface OneRecord {
  record: {
    model: { name: string; architecture: string; parameters: number; layers?: number | null };
    versions: Record<string, string>;
    command: string;
    created: string;
    tokens: number;
    prompt_tokens: number;
    rows: { count: number; seed: number } | null;
    layers: Layer[];
    cells: number;
    kept: boolean;
    edge_threshold: number;
    summary: Record<"induction" | "previous_token" | "duplicate_token" | "sink" | "retrieval", Ranked> & {
      sink_positions: [token: number, share: number][];
      received: [token: number, share: number][];
    };
    analyses?: { heads?: RolesRow[]; routes?: Route[]; kept?: { policy: string; budget: string; bytes: number } };
  };
  scores: Record<string, (number | null)[] | (number | null)[][]>[];
  threshold: number;
  /** The rows of each layer that are known, where rows were sampled. */
  computed?: number[][];
  /** The layers of which the lengths of values are known. */
  values: number[];
  /** Those of which it is known what a cache policy keeps. */
  marked: number[];
  /** The heads whose queries and keys are on the page. */
  neurons: [layer: number, head: number][];
}

/** `names` are of tokens without a text; `parts` of those that end within a character: the token that has its text. */
export interface Tokens {
  ids: number[];
  texts: string[];
  special: boolean[];
  names?: Record<number, string>;
  parts?: Record<number, number>;
  turns?: [role: string, start: number, stop: number][];
}

export interface Header extends OneRecord {
  /** `vocabulary`: the texts of the tokens that were predicted; `source`: what an encoder read, where a decoder wrote the rest. */
  tokens: Tokens & { vocabulary?: Record<number, string>; source?: Tokens };
  /** How many of the likeliest next tokens are known after each token. */
  predicted: number;
  /** A record of the same heads and as many tokens: from before an edit, or of another text, which is then there. */
  beside?: OneRecord & { tokens?: Tokens };
}

/** 0 is the page's record, 1 the one beside it. */
export type Side = 0 | 1;

export const header: Header = JSON.parse(text("header"));
export const record = header.record;
export const layers = record.layers;
/** The texts: 0 is the page's own, or what a decoder wrote; 1 what its encoder read; 2 that of the record beside it. */
export type Text = 0 | 1 | 2;
export const texts: Tokens[] = header.tokens.source ? [header.tokens, header.tokens.source] : [header.tokens];
export const lengths = texts.map(({ ids }) => ids.length);
/** The side of every map: the longest text. */
export const n = Math.max(...lengths);
const besideText = header.beside?.tokens;
if (besideText) texts[2] = besideText;
/** Whose tokens those of a text are in a record: the one beside it may be of another text. */
export const textIn = (side: Side, text: Text): Text => (side && text === 0 && besideText ? 2 : text);
/** Where the record beside it has other tokens. */
export const otherTokens: number[] = besideText ? header.tokens.ids.flatMap((id, at) => (id === besideText.ids[at] ? [] : [at])) : [];
/** Whose tokens the rows and the columns of a layer's maps are. */
export const textsOf = (layer: number): [rows: Text, keys: Text] => reads[layer]!;
const reads = layers.map((each) => (each.reads ?? ["target", "target"]).map((name) => (name === "source" ? 1 : 0)) as [Text, Text]);
/** Weights from here up are known exactly. */
export const threshold = header.threshold;
export const served = document.querySelector<HTMLMetaElement>("meta[name=regard-served]")?.content === "yes" && record.kept;

/** Positions of the page's own text whose keys the option "hide sinks" hides: special tokens, and those that hold a twentieth of all mass. */
export const sinks: ReadonlySet<number> = new Set([
  ...header.tokens.special.flatMap((special, token) => (special ? [token] : [])),
  ...record.summary.sink_positions.filter(([, share]) => share >= 0.05).map(([token]) => token),
]);

/** The page's record and the one beside it, if there is one. */
export const sides: OneRecord[] = header.beside ? [header, header.beside] : [header];

const prefix = (side: Side, layer: number): string => `${side ? "beside/" : ""}${layers[layer]!.index}`;

export const received = once((layer) => perToken(layer, "received"));
export const entropyRows = once((layer) => perToken(layer, "entropy_rows"));
export const edges = once(async (layer, head, side) => Edges.unpacked(await unpack(`${prefix(side, layer)}/edges/${head}`), n));
/** By kv head, the Euclidean norm of each key's value. */
export const norms = once((layer, _, side) => perToken(layer, "value_norms", side));
export const hasValues = (layer: number, side: Side = 0): boolean => sides[side]!.values.includes(layers[layer]!.index);

export const isMarked = (layer: number): boolean => header.marked.includes(layers[layer]!.index);
/** By kv head, one where the policy keeps the token and zero where it does not. */
export const kept = once(async (layer) => {
  const [bits, row] = [await unpack(`${layers[layer]!.index}/kept`), Math.ceil(n / 8)];
  return Array.from({ length: bits.length / row }, (_, head) => Float32Array.from({ length: n }, (_, at) => (bits[head * row + (at >> 3)]! >> (7 - (at & 7))) & 1));
});

const withVectors = new Set((header.neurons ?? []).map(String));
/** Whether the head's queries and keys are on the page. */
export const hasVectors = (layer: number, head: number): boolean => withVectors.has(`${layers[layer]!.index},${head}`);

/** Coordinates of the vectors of a head's queries or keys: by row, from `rows`. */
export interface Vectors {
  largest: Float32Array;
  /** Coordinate by coordinate, thousandths of the vector's largest. */
  codes: Int16Array;
}

export const queries = once((layer, head) => vectorsOf(layer, `q/${head}`, 0));
export const keys = once((layer, head) => vectorsOf(layer, `k/${Math.floor((head * layers[layer]!.kv_heads) / layers[layer]!.heads)}`, 1));

/** One row's vector. */
export function vectorAt({ largest, codes }: Vectors, row: number): Float32Array {
  const count = largest.length;
  return Float32Array.from({ length: codes.length / count }, (_, at) => (codes[at * count + row]! * largest[row]!) / 1000);
}

async function vectorsOf(layer: number, name: string, axis: 0 | 1): Promise<Vectors> {
  const bytes = await unpack(`${layers[layer]!.index}/${name}`);
  const count = lengths[textsOf(layer)[axis]]!;
  const planes = bytes.subarray(2 * count);
  const size = planes.length / 2;
  return { largest: halves(bytes.subarray(0, 2 * count)), codes: Int16Array.from({ length: size }, (_, at) => (planes[at]! << 8) | planes[size + at]!) };
}

export interface Predictions {
  /** After each token `header.predicted` of the likeliest, best first. */
  ids: number[];
  probabilities: Float32Array;
  /** Of each token given those before it, in nats. */
  logProbability: Float32Array;
}

let expected: Promise<Predictions> | null = null;

/** What the model expected after each token, where the record has it. */
export function predictions(): Promise<Predictions> {
  return (expected ??= Promise.all(["ids", "probabilities", "log_probability"].map((name) => unpack(`next/${name}`))).then(([ids, probabilities, came]) => ({
    ids: numbers(ids!),
    probabilities: halves(probabilities!),
    logProbability: halves(came!),
  })));
}

/** By head, one byte a cell: the mean of what is below the threshold, as `cells.ts` reads it. */
export const weak = once(async (layer, _, side) => {
  const bytes = await unpack(`${prefix(side, layer)}/rest`);
  const heads = split(bytes, layers[layer]!.heads);
  for (const map of heads) for (let at = cells; at < map.length; at++) map[at]! += map[at - cells]!;
  return heads;
});

/** The side of the pooled maps: never more cells than tokens. */
export const cells = Math.min(record.cells, n);

function text(id: string): string {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page holds no ${id}: write it again with regard`);
  return element.textContent ?? "";
}

const ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!$()*+,-./:;=?@[]^_{|}~";
const DIGITS = new Uint8Array(128);
[...ALPHABET].forEach((letter, digit) => (DIGITS[letter.charCodeAt(0)] = digit));

/** The bytes of a text of base 85; see ascii.py. */
function bytesOf(packed: string): Uint8Array {
  const missing = (5 - (packed.length % 5)) % 5;
  const out = new Uint8Array(((packed.length + missing) / 5) * 4);
  for (let at = 0, to = 0; at < packed.length; at += 5, to += 4) {
    let word = 0;
    for (let of = 0; of < 5; of++) word = word * 85 + (at + of < packed.length ? DIGITS[packed.charCodeAt(at + of)]! : 84);
    out[to] = word >>> 24;
    out[to + 1] = word >>> 16;
    out[to + 2] = word >>> 8;
    out[to + 3] = word;
  }
  return out.subarray(0, out.length - missing);
}

async function unpack(id: string): Promise<Uint8Array> {
  const stream = new Blob([bytesOf(text(id)) as BlobPart]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function perToken(layer: number, name: string, side: Side = 0): Promise<Float32Array[]> {
  const of = name === "received" || name === "value_norms" ? textsOf(layer)[1] : textsOf(layer)[0];
  const all = halves(await unpack(`${prefix(side, layer)}/${name}`));
  return split(all, all.length / lengths[of]!);
}

/** Little planes of half precision: sign and exponent first. */
function halves(bytes: Uint8Array): Float32Array {
  const count = bytes.length / 2;
  const out = new Float32Array(count);
  for (let at = 0; at < count; at++) {
    const bits = (bytes[at]! << 8) | bytes[count + at]!;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent === 31 ? NaN : exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    out[at] = bits & 0x8000 ? -size : size;
  }
  return out;
}

function split<T extends Float32Array | Uint8Array>(all: T, parts: number): T[] {
  const size = all.length / parts;
  return Array.from({ length: parts }, (_, part) => all.subarray(part * size, (part + 1) * size) as T);
}

function once<T>(load: (layer: number, head: number, side: Side) => Promise<T>): (layer: number, head?: number, side?: Side) => Promise<T> {
  const loaded = new Map<string, Promise<T>>();
  return (layer, head = 0, side = 0) => {
    const name = `${side}/${layer}/${head}`;
    if (!loaded.has(name)) loaded.set(name, load(layer, head, side));
    return loaded.get(name)!;
  };
}
