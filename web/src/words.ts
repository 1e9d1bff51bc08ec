/** Tokens, weights and regions in words. */
import { layers, otherTokens, record, texts, type Text } from "./data";
import type { Place } from "./state";

/** A weight to three decimals, as far as the record knows it; smaller numbers keep two digits. */
export function number(value: number): string {
  if (value === 0) return "0";
  if (value >= 0.01) return value.toFixed(3);
  return value >= 1e-6 ? trim(value.toPrecision(2)) : "< 0.000001";
}

/** An entropy in nats to two decimals, without the sign of what rounds to zero. */
export function nats(entropy: number): string {
  return (Math.abs(entropy) < 0.005 ? 0 : entropy).toFixed(2);
}

function trim(digits: string): string {
  return digits.includes("e") ? Number(digits).toFixed(7) : digits;
}

/** The token as a reader sees it: line ends and tabs have signs; a piece of a character is counted, the last has it alone. */
export function glyphs(token: number, of: Text = 0): string {
  const { texts: pieces, names = {}, parts = {} } = texts[of]!;
  const text = pieces[token]!;
  if (text) return signed(text);
  const end = parts[token];
  if (end === undefined) return names[token] ?? "";
  let first = token;
  while (parts[first - 1] === end) first--;
  return `${[...pieces[end]!][0]} ${token - first + 1}/${end - first + 1}`;
}

const signed = (text: string): string => text.replaceAll("\r", "").replaceAll("\n", "⏎").replaceAll("\t", "⇥");

/** What stands in the text for a token that has none of its own: its name, or a dot for a piece of a character. */
export function stand(token: number, of: Text = 0): string {
  const { texts: pieces, names = {}, parts = {} } = texts[of]!;
  return pieces[token] ? "" : token in parts ? "·" : (names[token] ?? "");
}

/** The token where it stands alone, so that blanks alone must be seen. */
export const alone = (token: number, of: Text = 0): string => visible(glyphs(token, of));

/** A text with signs for line ends, and for blanks where there is nothing else. */
export function visible(text: string): string {
  const seen = signed(text);
  return seen.trim() ? seen : seen.replaceAll(" ", "␣");
}

export function placed(token: number, of: Text = 0): string {
  return `‘${alone(token, of).trim()}’ at ${token}`;
}

/** Whether the model wrote the token itself. */
export const generated = (token: number, of: Text = 0): boolean => of === 0 && token >= record.prompt_tokens;

export function headName(layer: number, head: number): string {
  return `Layer ${layers[layer]!.index}${stackOf(layer) && `, ${stackOf(layer)}`} · head ${head}`;
}

/** Which part of an encoder–decoder a layer is in; nothing where there is but one. */
export function stackOf(layer: number): "encoder" | "decoder" | "cross" | "" {
  const { reads } = layers[layer]!;
  if (!reads) return "";
  return reads[0] !== reads[1] ? "cross" : reads[0] === "source" ? "encoder" : "decoder";
}

/** What the record beside this one is. */
export const BESIDE = otherTokens.length ? "other text" : "before";

/** A head of the page's record, or of the one beside it. */
export function placeName({ layer, head, side }: Place): string {
  return `${headName(layer, head)}${side ? `, ${BESIDE}` : ""}`;
}

/** What computes the weights of a layer, and in which form they are shown. */
export function mechanismOf(layer: number): string {
  const { mechanism = "softmax", shares } = layers[layer]!;
  return shares ? `${mechanism}: shares |A| / Σ|A| of each row` : mechanism;
}

export function count(value: number): string {
  return value.toLocaleString("en");
}

const STACKS = { encoder: "encoder", decoder: "decoder, itself", cross: "decoder → encoder", "": "" };

/** The name of the stack that begins with a layer. */
export const begins = (layer: number): string => (layer && stackOf(layer) === stackOf(layer - 1) ? "" : STACKS[stackOf(layer)]);
