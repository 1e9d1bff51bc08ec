/** Where in the text the sought words stand, as tokens. */
import { computed } from "@preact/signals";
import { header, n } from "./data";
import { chooseToken, find, token } from "./state";

const texts = header.tokens.texts.map((text) => text.toLowerCase());
const whole = texts.join("");
/** The first character of each token, and the end of the text. */
const starts = new Uint32Array(n + 1);
texts.forEach((text, at) => (starts[at + 1] = starts[at]! + text.length));

/** First and last token of each place, in order. */
export const matches = computed(() => {
  const sought = find.value.toLowerCase();
  const found: [first: number, last: number][] = [];
  if (!sought) return found;
  for (let at = whole.indexOf(sought); at >= 0; at = whole.indexOf(sought, at + sought.length)) found.push([holding(at), holding(at + sought.length - 1)]);
  return found;
});

/** Which of the places the chosen token stands in, or -1. */
export const current = computed(() => matches.value.findIndex(([first, last]) => first <= token.value && token.value <= last));

/** Chooses the next place after the chosen token, or the one before it; from the last the first follows. */
export function step(by: 1 | -1): void {
  const places = matches.value;
  if (!places.length) return;
  const next = by > 0 ? places.findIndex(([first]) => first > token.value) : places.findLastIndex(([, last]) => last < token.value);
  chooseToken(places[next < 0 ? (by > 0 ? 0 : places.length - 1) : next]![0]);
}

/** The token that holds the character. */
function holding(character: number): number {
  let [low, high] = [0, n];
  while (low + 1 < high) {
    const middle = (low + high) >> 1;
    if (starts[middle]! <= character) low = middle;
    else high = middle;
  }
  return low;
}
