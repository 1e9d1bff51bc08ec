/** A head's weights as they are asked for: A or ‖A v‖, of tokens or of words. */
import { edges, layers, norms, type Side } from "./data";
import type { Edges } from "./edges";
import { grainsOf, merged, sideOf, type GrainName } from "./grain";

export const MEASURES = ["weight", "value"] as const;
export type Measure = (typeof MEASURES)[number];

export interface Weights {
  edges: Edges;
  /** ‖v‖ of each key, where these are the lengths of weighted values. */
  lengths: Float32Array | null;
  /** What a weight of one comes to: 1, or the longest value of the head. */
  unit: number;
}

const KEPT = 48;
const made = new Map<string, Promise<Weights>>();

export function weights(layer: number, head: number, side: Side, measure: Measure, grain: GrainName): Promise<Weights> {
  if (measure === "weight" && grain === "tokens") return edges(layer, head, side).then((found) => ({ edges: found, lengths: null, unit: 1 }));
  const name = [side, layer, head, measure, grain].join();
  const found = made.get(name) ?? compute(layer, head, side, measure, grain);
  made.delete(name);
  made.set(name, found);
  if (made.size > KEPT) made.delete(made.keys().next().value!);
  return found;
}

/** ‖v‖ of each key of the head. */
export async function valueLengths(layer: number, head: number, side: Side = 0): Promise<Float32Array> {
  const found = await norms(layer, 0, side);
  return found[Math.floor((head * found.length) / layers[layer]!.heads)]!;
}

async function compute(layer: number, head: number, side: Side, measure: Measure, grain: GrainName): Promise<Weights> {
  const plain = await edges(layer, head, side);
  const lengths = measure === "value" ? await valueLengths(layer, head, side) : null;
  const weighed = lengths ? plain.times(lengths) : plain;
  const unit = lengths ? lengths.reduce((most, each) => Math.max(most, each), 0) || 1 : 1;
  return { edges: grain === "words" ? merged(weighed, ...grainsOf(grain, layer), sideOf(grain)) : weighed, lengths, unit };
}
