/** Regions recomputed by `regard serve` from q, k and log-sum-exp; pairs, from those of the page or by the server. */
import { hasVectors, keys, layers, queries, served, vectorAt } from "./data";

/** Mean weights of the region, or ‖A v‖ of it with `values`, one number for every `step` × `step` pairs; NaN where none of them may be seen. */
export async function region(
  layerIndex: number,
  head: number,
  [row0, row1]: [number, number],
  [key0, key1]: [number, number],
  step = 1,
  values = false,
): Promise<Float32Array> {
  const query = new URLSearchParams(
    Object.entries({ layer: layerIndex, head, row0, row1, key0, key1, step, values }).map(([name, value]) => [name, String(value)]),
  );
  const answer = await fetch(`api/region?${query}`);
  if (!answer.ok) throw new Error(((await answer.json()) as { detail: string }).detail);
  return new Float32Array(await answer.arrayBuffer());
}

export interface PairOfVectors {
  query: ArrayLike<number>;
  key: ArrayLike<number>;
  /** `scaling q_c k_c` of each coordinate. */
  products: number[];
  /** Their sum. */
  score: number;
  /** From a server, which knows every weight. */
  weight?: number;
}

/** Whether it is known what the scores of the head's pairs are made of. */
export const pairsKnown = (layer: number, head: number): boolean => hasVectors(layer, head) || (served && scored(layer));

/** Whether scores of the layer are products of q and k. */
export const scored = (layer: number): boolean => !(layers[layer]!.mechanism ?? "softmax").includes("(");

/** What the score of one pair is made of. */
export async function pair(layer: number, head: number, row: number, at: number): Promise<PairOfVectors> {
  if (!served && hasVectors(layer, head)) {
    const [query, key] = [vectorAt(await queries(layer, head), row), vectorAt(await keys(layer, head), at)];
    const products = Array.from(query, (value, of) => layers[layer]!.scaling * value * key[of]!);
    return { query, key, products, score: products.reduce((sum, each) => sum + each, 0) };
  }
  const answer = await fetch(`api/pair?layer=${layers[layer]!.index}&head=${head}&row=${row}&key=${at}`);
  if (!answer.ok) throw new Error(((await answer.json()) as { detail: string }).detail);
  return (await answer.json()) as PairOfVectors;
}

/** Runs at most `limit` jobs at a time, the newest first: what is looked at now comes before what was passed by. */
export class Queue {
  private readonly waiting: (() => Promise<void>)[] = [];
  private running = 0;

  constructor(private readonly limit: number) {}

  add(job: () => Promise<void>): void {
    this.waiting.push(job);
    this.next();
  }

  clear(): void {
    this.waiting.length = 0;
  }

  private next(): void {
    const job = this.running < this.limit ? this.waiting.pop() : undefined;
    if (!job) return;
    this.running++;
    void job().finally(() => {
      this.running--;
      this.next();
    });
  }
}
