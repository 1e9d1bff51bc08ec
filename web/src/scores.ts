/** Every number that the page has of a head, by name: what the matrix shows, what the table of heads exports. */
import { layers, n, record, sides, type Side } from "./data";
import { ROLES, score, statistic, tabled } from "./roles";

export interface Score {
  name: string;
  label: string;
  meaning: string;
  of: (layer: number, head: number, side?: Side) => number | null;
  /** Either sign counts. */
  signed?: boolean;
  /** The end of the scale, where it is not what was found. */
  most?: number;
}

const column = (name: string, label: string, meaning: string, signed = false): Score => ({
  name,
  label,
  meaning,
  signed,
  of: (layer, head, side = 0) => {
    const value = tabled(layer, head, side)?.[name];
    return typeof value === "number" ? value : null;
  },
});

const fromRecord = (name: string) => (layer: number, head: number, side: Side = 0): number | null => {
  const value = sides[side]!.scores[layer]![name]?.[head];
  return typeof value === "number" ? value : null;
};

const FROM_TEXT: Score[] = [
  { name: "entropy", label: "entropy", meaning: "mean entropy of the rows, in nats", of: (...at) => statistic("entropy", ...at), most: Math.log(n) },
  ...ROLES.map((role) => ({ name: role.name, label: role.label, meaning: role.meaning, of: (layer: number, head: number, side: Side = 0) => score(role, layer, head, side), most: 1 })),
  { name: "kept_mass", label: "attention on what is kept", meaning: "share of the head’s attention in this text that goes to tokens that the cache policy keeps", of: fromRecord("kept_mass"), most: 1 },
  { name: "distance", label: "distance", meaning: "mean distance from query to key, in tokens", of: (...at) => statistic("distance", ...at) },
];

const FROM_TABLE: Score[] = [
  ...(["entropy", "distance"] as const).map((name) => ({ ...column(name, `${name}, in the texts of regard heads`, `mean over all rows of the texts that regard heads looked at, ${name === "entropy" ? "in nats" : "in tokens"}`), name: `texts_${name}` })),
  column("loss_rise", "causal effect", "rise of the text’s loss, in nats a token, where the head is taken out: measured for the heads that lead the roles", true),
  column("loss_estimate", "causal effect, estimated", "rise of the text’s loss, in nats a token, where the head is taken out, to first order", true),
  ...ROLES.map((role) => ({ ...column(role.name, `${role.label}, on stimuli`, "as the role’s paper measures it, on a stimulus of its own: see regard heads"), name: `stimulus_${role.name}` })),
];

const known = (each: Score): boolean => layers.some((of, layer) => Array.from({ length: of.heads }, (_, head) => each.of(layer, head)).some((value) => value !== null));

/** Those that the record has. */
export const SCORES: Score[] = [...FROM_TEXT, ...(record.analyses?.heads ? FROM_TABLE : [])].filter(known);

/** The score of this name, or the first. */
export const scoreNamed = (name: string): Score => SCORES.find((each) => each.name === name) ?? SCORES[0]!;

/** A head's value of a record, or how much more it is than before. */
export function valueOf(each: Score, of: "this" | "before" | "change", layer: number, head: number): number | null {
  if (of === "this" || sides.length < 2) return each.of(layer, head);
  const before = each.of(layer, head, 1);
  if (of === "before") return before;
  const now = each.of(layer, head);
  return now === null || before === null ? null : now - before;
}
