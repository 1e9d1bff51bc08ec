/** The values of one tile of a head's map: 256 × 256 pixels of 2^level × 2^level pairs each, exact where weights are known. */
import { cellOf, cellPairs, pairsSeen, weakMeans } from "./cells";
import { cells, layers, sinks, textsOf, weak, type Side } from "./data";
import type { Edges } from "./edges";
import { grainsOf, sideOf, type GrainName } from "./grain";
import { weights, type Measure } from "./weights";

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
  side: Side;
  /** Rows and columns of the map, and what they are. */
  n: number;
  grain: GrainName;
  edges: Edges;
  /** Mean weight, by cell, of the pairs below the threshold. */
  rest: Float32Array;
  /** ‖v‖ of each key, where the map is of ‖A v‖; what a weight of one comes to. */
  lengths: Float32Array | null;
  unit: number;
}

/** Levels from single pairs up to the whole map on one tile. */
export const topLevel = (n: number): number => Math.max(0, Math.ceil(Math.log2(n / SIDE)));

export async function headMap(layer: number, head: number, side: Side = 0, measure: Measure = "weight", grain: GrainName = "tokens"): Promise<HeadMap> {
  const [found, bytes] = await Promise.all([weights(layer, head, side, measure, grain), weak(layer, 0, side)]);
  return { layer, head, side, n: sideOf(grain), grain, ...found, rest: weakMeans(bytes[head]!, side) };
}

/** The mean of what is below the threshold around a pair of tokens. */
export function meanAround(map: HeadMap, row: number, key: number): number {
  return map.rest[cellOf[row]! * cells + cellOf[key]!]! * (map.lengths?.[key] ?? 1);
}

/** Tells of a row and a column of a map whether some query of the one may see some key of the other. */
export function sight({ layer, grain }: HeadMap): (row: number, key: number) => boolean {
  const [{ causal, window }, [rows, keys]] = [layers[layer]!, grainsOf(grain, layer)];
  return (row, key) => {
    if (row >= rows.n || key >= keys.n || (causal && keys.starts[key]! >= rows.starts[row + 1]!)) return false;
    return window === null || keys.starts[key + 1]! - 1 > rows.starts[row]! - window;
  };
}

/** The mean of each cell’s pairs, for a picture of the whole map; NaN where none is known. */
export function pooled({ layer, side, n, edges: { starts, keys, weights }, rest }: HeadMap): Float32Array {
  const pairs = cellPairs(layer, side);
  const [mass, left] = [new Float32Array(cells * cells), pairs.slice()];
  for (let row = 0; row < n; row++)
    for (let edge = starts[row]!; edge < starts[row + 1]!; edge++) {
      const cell = cellOf[row]! * cells + cellOf[keys[edge]!]!;
      mass[cell]! += weights[edge]!;
      left[cell]!--;
    }
  return mass.map((value, cell) => (pairs[cell]! > 0 ? (value + Math.max(0, left[cell]!) * rest[cell]!) / pairs[cell]! : NaN));
}

/** The tile's values, row by row; NaN where no pair may be seen or where it is hidden. */
export function tileValues(map: HeadMap, { level, x, y }: Place, options: Options): Float32Array {
  const out = new Float32Array(SIDE * SIDE).fill(NaN);
  const [step, row0, key0] = [1 << level, (y * SIDE) << level, (x * SIDE) << level];
  const ends = grainsOf(map.grain, map.layer).map((each) => each.n);
  const [height, width] = [row0, key0].map((start, axis) => Math.max(0, Math.min(SIDE, Math.ceil((ends[axis]! - start) / step)))) as [number, number];
  const hidden = options.hideSinks ? hiddenKeys(map) : new Set<number>();
  background(out, map, options, { step, row0, key0, height, width });
  foreground(out, map, options, hidden, { step, row0, key0, height, width });
  if (level === 0) for (const key of hidden) if (key >= key0 && key < key0 + width) for (let row = 0; row < height; row++) out[row * SIDE + key - key0] = NaN;
  return out;
}

/** The columns of sinks and special tokens. */
function hiddenKeys({ layer, grain }: HeadMap): Set<number> {
  const [, keys] = textsOf(layer);
  return keys ? new Set() : new Set([...sinks].map((token) => grainsOf(grain, layer)[1].of[token]!));
}

interface Frame {
  step: number;
  row0: number;
  key0: number;
  height: number;
  width: number;
}

/** What is below the threshold: of tokens its mean in the cell, of words nothing. */
function background(out: Float32Array, map: HeadMap, options: Options, { step, row0, key0, height, width }: Frame): void {
  if (map.grain === "words") {
    const seen = sight(map);
    for (let row = 0; row < height; row++)
      for (let column = 0; column < width; column++) if (seen(Math.min(row0 + (row + 1) * step, map.n) - 1, key0 + column * step)) out[row * SIDE + column] = 0;
    return;
  }
  const { causal, window } = layers[map.layer]!;
  for (let row = 0; row < height; row++) {
    const [top, bottom] = [row0 + row * step, Math.min(map.n, row0 + (row + 1) * step) - 1];
    const cellRow = cellOf[(top + bottom) >> 1]! * cells;
    const first = window === null ? 0 : Math.max(0, Math.floor((top - window + 1 - key0) / step));
    const last = causal ? Math.min(width, Math.floor((bottom - key0) / step) + 1) : width;
    for (let column = first; column < last; column++) {
      const middle = Math.min(map.n - 1, key0 + column * step + (step >> 1));
      out[row * SIDE + column] = options.floor ? 0 : map.rest[cellRow + cellOf[middle]!]! * (map.lengths?.[middle] ?? 1);
    }
  }
}

function foreground(out: Float32Array, map: HeadMap, options: Options, hidden: Set<number>, { step, row0, key0, height, width }: Frame): void {
  const { starts, keys, weights } = map.edges;
  const [rowEnd, keyEnd] = [Math.min(map.n, row0 + height * step), Math.min(map.n, key0 + width * step)];
  const least = options.floor * map.unit;
  for (let row = row0; row < rowEnd; row++) {
    for (let edge = map.edges.from(row, key0); edge < starts[row + 1]! && keys[edge]! < keyEnd; edge++) {
      const key = keys[edge]!;
      if (weights[edge]! < least || hidden.has(key)) continue;
      const [y, x] = [Math.floor((row - row0) / step), Math.floor((key - key0) / step)];
      const weight = weights[edge]!;
      if (step === 1) out[y * SIDE + x] = weight;
      else out[y * SIDE + x]! += weight / pixelPairs(map, row0 + y * step, key0 + x * step, step);
    }
  }
}

/** Visible pairs of one pixel, without counting where all of them are. */
function pixelPairs({ layer, n, grain }: HeadMap, row0: number, key0: number, step: number): number {
  if (grain === "words") return step * step;
  return pairsSeen(layer, row0, Math.min(n, row0 + step), key0, Math.min(n, key0 + step));
}

/** What of this map is more than the other's, pair by pair; NaN where one of them knows nothing. */
export function differences(one: HeadMap, other: HeadMap, place: Place, options: Options): Float32Array {
  const theirs = tileValues(other, place, options);
  return tileValues(one, place, options).map((value, at) => value - theirs[at]!);
}
