/** The cells of pooled maps: which tokens they cover, how many pairs of them may be seen, what their bytes stand for. */
import { cells, layers, lengths, n, sides, textsOf, type Side } from "./data";

const DECADES = 5;

export const cellOf = Uint16Array.from({ length: n }, (_, token) => Math.floor(((token + 1) * cells - 1) / n));
const cellStart = Uint32Array.from({ length: cells + 1 }, (_, cell) => Math.floor((cell * n) / cells));

/** The means of the weights below the threshold that a head's bytes stand for; see cells.py. */
export function weakMeans(bytes: Uint8Array, side: Side): Float32Array {
  const table = Float32Array.from({ length: 256 }, (_, code) => (code ? sides[side]!.threshold * 10 ** ((DECADES * (code - 255)) / 254) : 0));
  return Float32Array.from(bytes, (code) => table[code]!);
}

/** How many pairs of the region the layer's queries may see. */
export function visiblePairs(layer: number, row0: number, row1: number, key0: number, key1: number): number {
  let pairs = 0;
  for (let row = row0; row < row1; row++) pairs += seenBy(layer, row, key0, key1);
  return pairs;
}

/** The same, without counting where all pairs are seen. */
export function pairsSeen(layer: number, row0: number, row1: number, key0: number, key1: number): number {
  const { causal, window } = layers[layer]!;
  const [rows, keys] = textsOf(layer);
  if (row1 <= lengths[rows]! && key1 <= lengths[keys]! && window === null && (!causal || key1 <= row0 + 1)) return (row1 - row0) * (key1 - key0);
  return visiblePairs(layer, row0, row1, key0, key1);
}

function seenBy(layer: number, row: number, key0: number, key1: number): number {
  const { causal, window } = layers[layer]!;
  const [rows, keys] = textsOf(layer);
  if (row >= lengths[rows]!) return 0;
  const last = Math.min(causal ? row + 1 : key1, key1, lengths[keys]!);
  const first = window === null ? key0 : Math.max(key0, row - window + 1);
  return Math.max(0, last - first);
}

const counted = new Map<string, Float32Array>();

/** By cell, how many pairs the computed queries of the layer may see. */
export function cellPairs(layer: number, side: Side): Float32Array {
  const { causal, window } = layers[layer]!;
  const computed = sides[side]!.computed?.[layer];
  const name = [side, causal, window, ...textsOf(layer), computed && layer].join();
  if (!counted.has(name)) counted.set(name, count(layer, computed));
  return counted.get(name)!;
}

function count(layer: number, computed: number[] | undefined): Float32Array {
  const found = new Float32Array(cells * cells);
  const rows = computed ?? Array.from({ length: n }, (_, row) => row);
  for (const row of rows)
    for (let x = 0; x < cells; x++) found[cellOf[row]! * cells + x]! += seenBy(layer, row, cellStart[x]!, cellStart[x + 1]!);
  return found;
}
