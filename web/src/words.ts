/** Tokens, weights and regions in words. */
import { header, layers, n } from "./data";
import type { Place } from "./state";

const { texts, names = {}, parts = {} } = header.tokens;

/** A weight to three decimals, as far as the record knows it; smaller numbers keep two digits. */
export function number(value: number): string {
  if (value === 0) return "0";
  if (value >= 0.01) return value.toFixed(3);
  return value >= 1e-6 ? trim(value.toPrecision(2)) : "< 0.000001";
}

function trim(digits: string): string {
  return digits.includes("e") ? Number(digits).toFixed(7) : digits;
}

/** The token as a reader sees it: line ends and tabs have signs; a piece of a character is counted, the last has it alone. */
export function glyphs(token: number): string {
  const text = texts[token]!;
  if (text) return text.replaceAll("\r", "").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  const end = parts[token];
  if (end === undefined) return names[token] ?? "";
  let first = token;
  while (parts[first - 1] === end) first--;
  return `${[...texts[end]!][0]} ${token - first + 1}/${end - first + 1}`;
}

/** What stands in the text for a token that has none of its own: its name, or a dot for a piece of a character. */
export function stand(token: number): string {
  return texts[token] ? "" : token in parts ? "·" : (names[token] ?? "");
}

/** The token where it stands alone, so that blanks alone must be seen. */
export function alone(token: number): string {
  const seen = glyphs(token);
  return seen.trim() ? seen : seen.replaceAll(" ", "␣");
}

export function quoted(token: number): string {
  return `‘${alone(token).trim()}’`;
}

export function placed(token: number): string {
  return `${quoted(token)} at ${token}`;
}

export function headName(layer: number, head: number): string {
  return `Layer ${layers[layer]!.index} · head ${head}`;
}

/** A head of the page's record, or of the one beside it. */
export function placeName({ layer, head, side }: Place): string {
  return `${headName(layer, head)}${side ? ", before" : ""}`;
}

/** What computes the weights of a layer, and in which form they are shown. */
export function mechanismOf(layer: number): string {
  const { mechanism = "softmax", shares } = layers[layer]!;
  return shares ? `${mechanism}: shares |A| / Σ|A| of each row` : mechanism;
}

export function count(value: number): string {
  return value.toLocaleString("en");
}

export function range(from: number, to: number): string {
  return to - from === 1 ? placed(from) : `${from}–${Math.min(to, n) - 1}`;
}
