/** What heads are known to do, and the scores that say so. */
import { layers, sides, type RolesRow, type Side } from "./data";

/** In running text most repeats go on differently, so even a pure induction head scores far below one. */
export const CUT = 0.2;

export interface Role {
  name: "induction" | "previous_token" | "duplicate_token" | "sink" | "retrieval";
  label: string;
  short: string;
  meaning: string;
}

export const ROLES: Role[] = [
  {
    name: "induction",
    label: "induction",
    short: "ind",
    meaning: "mean weight from a token that occurred before to the token after its last occurrence: it continues repeated text",
  },
  { name: "previous_token", label: "previous token", short: "prev", meaning: "mean weight on the token just before" },
  { name: "duplicate_token", label: "duplicate token", short: "dup", meaning: "mean weight on earlier occurrences of the same token" },
  { name: "sink", label: "sink", short: "sink", meaning: "mean weight on the first four tokens: it rests there when it has nothing to fetch" },
  { name: "retrieval", label: "retrieval-like", short: "retr", meaning: "fetches what is needed from far back in the text (score from the record's ranking)" },
];

const ranked = sides.map(({ record }) => new Map(ROLES.flatMap(({ name }) => record.summary[name].map(([index, of, value]) => [`${name}/${index}/${of}`, value] as const))));

/** The head's score for the role in this text, or null where the record holds none. */
export function score(role: Role, layer: number, head: number, side: Side = 0): number | null {
  const values = sides[side]!.scores[layer]![role.name]?.[head];
  if (Array.isArray(values)) return values.reduce<number>((sum, value) => sum + (value ?? 0), 0);
  if (typeof values === "number") return values;
  return ranked[side]!.get(`${role.name}/${layers[layer]!.index}/${head}`) ?? null;
}

const tables = sides.map((each) => new Map((each.record.analyses?.heads ?? []).map((row) => [`${row.layer}/${row.head}`, row])));

/** What `regard heads` found of the head. */
export function tabled(layer: number, head: number, side: Side = 0): RolesRow | undefined {
  return tables[side]!.get(`${layers[layer]!.index}/${head}`);
}

/** Whether roles are those of `regard heads`, by stimuli of their own, and not by scores in this text. */
export const measured = tables[0]!.size > 0;

/** How much of the role the head has, by what it is labelled with. */
export function strength(role: Role, layer: number, head: number): number | null {
  const value = tabled(layer, head)?.[role.name];
  return measured ? (typeof value === "number" ? value : null) : score(role, layer, head);
}

export function has(role: Role, layer: number, head: number): boolean {
  return measured ? Boolean(tabled(layer, head)?.roles.includes(role.name)) : (score(role, layer, head) ?? 0) >= CUT;
}

const known = layers.map((each, layer) =>
  Array.from({ length: each.heads }, (_, head) => ROLES.filter((role) => has(role, layer, head)).sort((a, b) => strength(b, layer, head)! - strength(a, layer, head)!)),
);

/** The head's roles, strongest first. */
export const rolesOf = (layer: number, head: number): Role[] => known[layer]![head]!;

export function statistic(name: "entropy" | "distance", layer: number, head: number, side: Side = 0): number | null {
  const value = sides[side]!.scores[layer]![name]?.[head];
  return typeof value === "number" ? value : null;
}
