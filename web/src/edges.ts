/** The weights of one head that are at least the threshold, as compressed sparse rows, of tokens or of words. */

export interface Edge {
  token: number;
  weight: number;
}

/** A reader of the stream of varints that payload.py describes. */
function varints(bytes: Uint8Array): () => number {
  let at = 0;
  return () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++]!;
      value |= (byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
}

/** All numbers of such a stream. */
export function numbers(bytes: Uint8Array): number[] {
  const [next, found] = [varints(bytes), [] as number[]];
  for (const byte of bytes) if (byte < 128) found.push(next());
  return found;
}

export class Edges {
  private columns: { starts: Uint32Array; edges: Uint32Array; rows: Uint32Array } | null = null;

  /** `starts` (n + 1): where the edges of each row begin among `keys`, ascending in a row, and `weights`. */
  constructor(
    readonly starts: Uint32Array,
    readonly keys: Uint32Array,
    readonly weights: Float32Array,
    readonly n: number,
  ) {}

  static unpacked(bytes: Uint8Array, n: number): Edges {
    const next = varints(bytes);
    const starts = new Uint32Array(n + 1);
    for (let row = 0; row < n; row++) starts[row + 1] = starts[row]! + next();
    const keys = new Uint32Array(starts[n]!);
    for (let row = 0; row < n; row++) {
      let key = 0;
      for (let edge = starts[row]!; edge < starts[row + 1]!; edge++) keys[edge] = key += next();
    }
    const weights = new Float32Array(keys.length);
    for (let edge = 0; edge < keys.length; edge++) weights[edge] = next() / 1000;
    return new Edges(starts, keys, weights, n);
  }

  /** Each weight times a number of its key. */
  times(factors: Float32Array): Edges {
    return new Edges(this.starts, this.keys, this.weights.map((weight, edge) => weight * factors[this.keys[edge]!]!), this.n);
  }

  /** The weight of a pair, or null where it is below the threshold. */
  at(row: number, key: number): number | null {
    const edge = this.from(row, key);
    return edge < this.starts[row + 1]! && this.keys[edge] === key ? this.weights[edge]! : null;
  }

  /** The first edge of the row whose key is `key` or later. */
  from(row: number, key: number): number {
    let [low, high] = [this.starts[row]!, this.starts[row + 1]!];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.keys[middle]! < key) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The keys that a query attends to. */
  row(row: number): Edge[] {
    const out: Edge[] = [];
    for (let edge = this.starts[row]!; edge < this.starts[row + 1]!; edge++)
      out.push({ token: this.keys[edge]!, weight: this.weights[edge]! });
    return out;
  }

  /** The queries that attend to a key. */
  column(key: number): Edge[] {
    const { starts, edges, rows } = (this.columns ??= this.transpose());
    const out: Edge[] = [];
    for (let at = starts[key]!; at < starts[key + 1]!; at++) out.push({ token: rows[at]!, weight: this.weights[edges[at]!]! });
    return out;
  }

  /** The strongest pair of a region, or null if all of it is below the threshold. */
  strongest(row0: number, row1: number, key0: number, key1: number): { row: number; key: number; weight: number } | null {
    let best: { row: number; key: number; weight: number } | null = null;
    for (let row = row0; row < row1; row++)
      for (let edge = this.from(row, key0); edge < this.starts[row + 1]! && this.keys[edge]! < key1; edge++)
        if (!best || this.weights[edge]! > best.weight) best = { row, key: this.keys[edge]!, weight: this.weights[edge]! };
    return best;
  }

  private transpose() {
    const starts = new Uint32Array(this.n + 1);
    for (const key of this.keys) starts[key + 1]!++;
    for (let key = 0; key < this.n; key++) starts[key + 1]! += starts[key]!;
    const next = starts.slice();
    const edges = new Uint32Array(this.keys.length);
    const rows = new Uint32Array(this.keys.length);
    for (let row = 0; row < this.n; row++)
      for (let edge = this.starts[row]!; edge < this.starts[row + 1]!; edge++) {
        const at = next[this.keys[edge]!]!++;
        edges[at] = edge;
        rows[at] = row;
      }
    return { starts, edges, rows };
  }
}
