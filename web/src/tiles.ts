/** The values of one tile of a head's map: 256 × 256 pixels of 2^level × 2^level pairs each, exact where weights are known. */
import { cells, edges, layers, n, pooled, sinks } from "./data";
import type { Edges } from "./edges";

export const SIDE = 256;

export interface Place {
  level: number;
  /** In tiles of this level. */
  x: number;
  y: number;
}

export interface Options {
  /** Weights below this are not drawn; 0 draws everything. */
  floor: number;
  hideSinks: boolean;
}

/** All that the page knows of one head. */
export interface HeadMap {
  layer: number;
  head: number;
  edges: Edges;
  pooled: Float32Array;
  /** Mean weight, by cell, of the pairs below the threshold. */
  rest: Float32Array;
}

/** Levels from single pairs up to the whole map on one tile. */
export const TOP_LEVEL = Math.max(0, Math.ceil(Math.log2(n / SIDE)));

const cellOf = Uint16Array.from({ length: n }, (_, token) => Math.floor(((token + 1) * cells - 1) / n));
const cellStart = Uint32Array.from({ length: cells + 1 }, (_, cell) => Math.floor((cell * n) / cells));

export async function headMap(layer: number, head: number): Promise<HeadMap> {
  const [found, maps] = await Promise.all([edges(layer, head), pooled(layer)]);
  return { layer, head, edges: found, pooled: maps[head]!, rest: restOf(layer, found, maps[head]!) };
}

/** The pooled mean around a pair. */
export function meanAround(map: HeadMap, row: number, key: number): number {
  return map.pooled[cellOf[row]! * cells + cellOf[key]!]!;
}

/** How many pairs of the region the layer's queries may see. */
export function visiblePairs(layer: number, row0: number, row1: number, key0: number, key1: number): number {
  const { causal, window } = layers[layer]!;
  if (!causal && window === null) return (row1 - row0) * (key1 - key0);
  let pairs = 0;
  for (let row = row0; row < row1; row++) {
    const last = causal ? Math.min(key1, row + 1) : key1;
    const first = window === null ? key0 : Math.max(key0, row - window + 1);
    pairs += Math.max(0, last - first);
  }
  return pairs;
}

/** The tile's values, row by row; NaN where no pair may be seen or where it is hidden. */
export function tileValues(map: HeadMap, { level, x, y }: Place, options: Options): Float32Array {
  const out = new Float32Array(SIDE * SIDE).fill(NaN);
  const [step, row0, key0] = [1 << level, (y * SIDE) << level, (x * SIDE) << level];
  const [height, width] = [row0, key0].map((start) => Math.min(SIDE, Math.ceil((n - start) / step))) as [number, number];
  background(out, map, options, { step, row0, key0, height, width });
  foreground(out, map, options, { step, row0, key0, height, width });
  if (options.hideSinks && level === 0)
    for (const key of sinks) if (key >= key0 && key < key0 + width) for (let row = 0; row < height; row++) out[row * SIDE + key - key0] = NaN;
  return out;
}

interface Frame {
  step: number;
  row0: number;
  key0: number;
  height: number;
  width: number;
}

function background(out: Float32Array, map: HeadMap, options: Options, { step, row0, key0, height, width }: Frame): void {
  const { causal, window } = layers[map.layer]!;
  for (let row = 0; row < height; row++) {
    const [top, bottom] = [row0 + row * step, Math.min(n, row0 + (row + 1) * step) - 1];
    const cellRow = cellOf[(top + bottom) >> 1]! * cells;
    const first = window === null ? 0 : Math.max(0, Math.floor((top - window + 1 - key0) / step));
    const last = causal ? Math.min(width, Math.floor((bottom - key0) / step) + 1) : width;
    for (let column = first; column < last; column++) {
      const middle = Math.min(n - 1, key0 + column * step + (step >> 1));
      out[row * SIDE + column] = options.floor ? 0 : map.rest[cellRow + cellOf[middle]!]!;
    }
  }
}

function foreground(out: Float32Array, map: HeadMap, options: Options, { step, row0, key0, height, width }: Frame): void {
  const { starts, keys, weights } = map.edges;
  const [rowEnd, keyEnd] = [Math.min(n, row0 + height * step), Math.min(n, key0 + width * step)];
  const least = options.floor * 1000;
  for (let row = row0; row < rowEnd; row++) {
    for (let edge = map.edges.from(row, key0); edge < starts[row + 1]! && keys[edge]! < keyEnd; edge++) {
      const key = keys[edge]!;
      if (weights[edge]! < least || (options.hideSinks && sinks.has(key))) continue;
      const [y, x] = [Math.floor((row - row0) / step), Math.floor((key - key0) / step)];
      const weight = weights[edge]! / 1000;
      if (step === 1) out[y * SIDE + x] = weight;
      else out[y * SIDE + x]! += weight / pixelPairs(map.layer, row0 + y * step, key0 + x * step, step);
    }
  }
}

/** Visible pairs of one pixel, without counting where all of them are. */
function pixelPairs(layer: number, row0: number, key0: number, step: number): number {
  const { causal, window } = layers[layer]!;
  const [row1, key1] = [Math.min(n, row0 + step), Math.min(n, key0 + step)];
  if (!causal && window === null) return (row1 - row0) * (key1 - key0);
  if (causal && window === null && key1 <= row0 + 1) return (row1 - row0) * (key1 - key0);
  return visiblePairs(layer, row0, row1, key0, key1);
}

const cellPairs = new Map<number, Float32Array>();

function pairsByCell(layer: number): Float32Array {
  if (!cellPairs.has(layer)) {
    const pairs = Float32Array.from({ length: cells * cells }, (_, cell) => {
      const [y, x] = [Math.floor(cell / cells), cell % cells];
      const [row0, row1, key0, key1] = [cellStart[y]!, cellStart[y + 1]!, cellStart[x]!, cellStart[x + 1]!];
      const { causal, window } = layers[layer]!;
      if (causal && window === null && key1 <= row0 + 1) return (row1 - row0) * (key1 - key0);
      return causal && key0 >= row1 ? 0 : visiblePairs(layer, row0, row1, key0, key1);
    });
    cellPairs.set(layer, pairs);
  }
  return cellPairs.get(layer)!;
}

function restOf(layer: number, { starts, keys, weights }: Edges, means: Float32Array): Float32Array {
  const pairs = pairsByCell(layer);
  const mass = means.map((mean, cell) => mean * pairs[cell]!);
  const left = pairs.slice();
  for (let row = 0; row < n; row++)
    for (let edge = starts[row]!; edge < starts[row + 1]!; edge++) {
      const cell = cellOf[row]! * cells + cellOf[keys[edge]!]!;
      mass[cell]! -= weights[edge]! / 1000;
      left[cell]!--;
    }
  return mass.map((value, cell) => (left[cell]! > 0 && value > 0 ? value / left[cell]! : 0));
}
