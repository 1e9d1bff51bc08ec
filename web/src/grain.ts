/** What the rows and columns of maps are, and what is shaded: tokens, or the words that they make up. */
import { lengths, n, record, textIn, texts, textsOf, type Side, type Text } from "./data";
import { Edges } from "./edges";
import { generated, glyphs, visible } from "./words";

export const GRAINS = ["tokens", "words"] as const;
export type GrainName = (typeof GRAINS)[number];

/** Runs of tokens, one after another. */
export interface Grain {
  n: number;
  /** The first token of each, and the end of the text. */
  starts: Uint32Array;
  /** Which of them a token belongs to. */
  of: Uint32Array;
  text: Text;
}

const made = new Map<string, Grain>();

export function grainOf(name: GrainName, text: Text): Grain {
  const place = `${name} ${text}`;
  if (!made.has(place)) made.set(place, grain(name === "words" ? wordStarts(text) : Array.from({ length: lengths[text]! }, (_, at) => at), text));
  return made.get(place)!;
}

/** Of a layer's queries and of its keys. */
export function grainsOf(name: GrainName, layer: number): [rows: Grain, keys: Grain] {
  const [rows, keys] = textsOf(layer);
  return [grainOf(name, rows), grainOf(name, keys)];
}

/** The side of its maps. */
export const sideOf = (name: GrainName): number => (name === "tokens" ? n : Math.max(...lengths.map((_, text) => grainOf(name, text as Text).n)));

/** The same runs of the tokens that a record has there. */
export const inRecord = (side: Side, grain: Grain): Grain => ({ ...grain, text: textIn(side, grain.text) });

function grain(first: number[], text: Text): Grain {
  const starts = Uint32Array.from([...first, lengths[text]!]);
  const of = new Uint32Array(lengths[text]!);
  for (let unit = 0; unit < first.length; unit++) of.fill(unit, starts[unit], starts[unit + 1]);
  return { n: first.length, starts, of, text };
}

/** A token begins a word unless it begins within one, by Unicode's rules (UAX 29); a piece of a character never does. */
function wordStarts(text: Text): number[] {
  const { texts: pieces, special, parts = {} } = texts[text]!;
  const within = new Set<number>();
  for (const { index, segment, isWordLike } of new Intl.Segmenter(undefined, { granularity: "word" }).segment(pieces.join("")))
    if (isWordLike) for (let at = index + 1; at < index + segment.length; at++) within.add(at);
  const found: number[] = [];
  let character = 0;
  for (let at = 0; at < pieces.length; at++) {
    const piece = at > 0 && parts[at - 1] !== undefined && parts[at - 1]! >= at;
    if (!at || special[at] || special[at - 1] || !(within.has(character) || piece)) found.push(at);
    character += pieces[at]!.length;
  }
  return found;
}

/** Which of them the model wrote itself. */
export function madeOf({ n: end, of, text }: Grain): [first: number, end: number] {
  return text === 0 && record.prompt_tokens < of.length ? [of[record.prompt_tokens]!, end] : [end, end];
}

/** A token or word as it stands in the text. */
export function written({ starts, text }: Grain, unit: number): string {
  let found = "";
  for (let at = starts[unit]!; at < starts[unit + 1]!; at++) found += glyphs(at, text);
  return found;
}

/** The weights of words: the sum over the keys of one, the mean over the queries of the other. */
export function merged(edges: Edges, rows: Grain, keys: Grain, side: number): Edges {
  const [starts, found, weights] = [new Uint32Array(side + 1), [] as number[], [] as number[]];
  const sums = new Float32Array(keys.n);
  for (let unit = 0; unit < side; unit++) {
    if (unit < rows.n) {
      const [first, last] = [rows.starts[unit]!, rows.starts[unit + 1]!];
      const touched = new Set<number>();
      for (let edge = edges.starts[first]!; edge < edges.starts[last]!; edge++) {
        const key = keys.of[edges.keys[edge]!]!;
        touched.add(key);
        sums[key]! += edges.weights[edge]! / (last - first);
      }
      for (const key of [...touched].sort((a, b) => a - b)) {
        found.push(key);
        weights.push(sums[key]!);
        sums[key] = 0;
      }
    }
    starts[unit + 1] = found.length;
  }
  return new Edges(starts, Uint32Array.from(found), Float32Array.from(weights), side);
}

/** The same where it stands alone, with its place. */
export function called(grain: Grain, unit: number): string {
  const at = grain.starts[unit]!;
  return `‘${visible(written(grain, unit)).trim()}’ at ${at}${generated(at, grain.text) ? " (generated)" : ""}`;
}

/** Some of them, from and to. */
export function calledRange(grain: Grain, from: number, to: number): string {
  if (to - from === 1) return called(grain, from);
  return `${grain.starts[from]}–${grain.starts[Math.min(to, grain.n)]! - 1}`;
}
