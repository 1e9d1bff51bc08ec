/** The routes by which tokens' last states came about, as `regard flow --way routes` walks them down. */
import { record } from "./data";

export interface Route {
  layer: number;
  /** `attn`, `mlp`, or `resid`: what stays as it was. */
  part: "attn" | "mlp" | "resid";
  to: number;
  source: number;
  head: number | null;
  /** Share of the state. */
  weight: number;
}

export const routes: Route[] = record.analyses?.routes ?? [];
export const top = Math.max(...routes.map(({ layer }) => layer), 0);
export const targets = [...new Set(routes.filter(({ layer }) => layer === top).map(({ to }) => to))].sort((a, b) => a - b);

/** The edges of at least this share that still lead up to the targets, from the top down. */
export function leading(least: number): Route[] {
  const found: Route[] = [];
  let nodes = new Set(targets);
  for (let layer = top; layer >= 0; layer--) {
    const kept = routes.filter((each) => each.layer === layer && each.weight >= least && nodes.has(each.to));
    found.push(...kept);
    nodes = new Set(kept.map(({ source }) => source));
  }
  return found;
}

const READABLE = 60; // heads' edges; what stays and what networks add crosses nothing

/** The least share by which no more of the heads' edges are drawn than can be read. */
export const usual = (): number => Array.from({ length: 300 }, (_, step) => step / 1000).find((share) => leading(share).filter(({ part }) => part === "attn").length <= READABLE) ?? 0.3;
