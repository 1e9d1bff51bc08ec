/** What heads are known to do, and the scores that say so. */
import { header, layers, record } from "./data";

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

/** The head's score for the role, or null where the record holds none. */
export function score(role: Role, layer: number, head: number): number | null {
  const values = header.scores[layer]![role.name]?.[head];
  if (Array.isArray(values)) return values.reduce<number>((sum, value) => sum + (value ?? 0), 0);
  if (typeof values === "number") return values;
  return record.summary[role.name].find(([index, of]) => index === layers[layer]!.index && of === head)?.[2] ?? null;
}

/** The roles whose score passes the cut, strongest first. */
export function rolesOf(layer: number, head: number): Role[] {
  return ROLES.filter((role) => (score(role, layer, head) ?? 0) >= CUT).sort(
    (a, b) => score(b, layer, head)! - score(a, layer, head)!,
  );
}

export function statistic(name: "entropy" | "distance", layer: number, head: number): number | null {
  const value = header.scores[layer]![name]?.[head];
  return typeof value === "number" ? value : null;
}
