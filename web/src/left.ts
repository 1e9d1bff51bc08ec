/** What of the model's attention is not on the page, in words. */
import { hasValues, header, layers, record, served, sides, threshold } from "./data";

/** Weak weights, maps that cannot be recomputed, layers that were not watched. */
export function leftOut(): string[] {
  const found: string[] = [];
  if (!served) {
    const more = threshold > record.edge_threshold ? ` (the record has those from ${record.edge_threshold} up; they made the page too large)` : "";
    found.push(`Weights below ${threshold} are left out${more}: of them the page has the mean over each of ${record.cells} × ${record.cells} cells of a map.`);
  }
  if (sides.length > 1 && header.beside!.threshold !== threshold) found.push(`The record beside it leaves out weights below ${header.beside!.threshold}.`);
  if (!record.kept) found.push("Queries and keys were not kept, so that no weight can be recomputed.");
  else if (!served) {
    const some = header.neurons?.length ?? 0;
    const heads = layers.reduce((sum, { heads }) => sum + heads, 0);
    const here = some === heads ? "The page has the queries and keys of all heads" : some ? `Of ${some} of ${heads} heads the page has queries and keys, and so what the scores of pairs are made of` : "The page has no queries and keys";
    found.push(`${here}; they were kept in the record: regard serve shows every weight${some === heads ? "" : " and every pair"}, recomputed.`);
  }
  if (!layers.every((_, layer) => hasValues(layer))) found.push(`${layers.some((_, layer) => hasValues(layer)) ? "Of some layers" : "Of these layers"} how long values are was not kept, so that ‖A v‖ is not known.`);
  const depth = record.model.layers;
  if (depth && layers.length < depth) found.push(`${layers.length} of ${depth} layers were looked at.`);
  return found;
}
