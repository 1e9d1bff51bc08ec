/** The tokens as spans, built once; afterwards only the spans whose shade changes are touched. */
import { record, texts, type Text } from "./data";
import { ramp, rootStep, type Theme } from "./colour";
import { glyphs, stand } from "./words";

const HEAD = 110; // pixels of what stays above the text

export class Tapestry {
  private readonly spans: HTMLElement[];
  private readonly steps: Uint8Array;
  private theme: Theme | null = null;
  private chosen: HTMLElement[] = [];
  private marked: HTMLElement[] = [];
  private at = 0;

  constructor(
    private readonly box: HTMLElement,
    readonly text: Text,
    private readonly on: { over: (token: number | null) => void; pick: (token: number) => void },
  ) {
    this.spans = texts[text]!.texts.map((piece, at) => spanOf(piece, at, text));
    this.steps = new Uint8Array(this.spans.length);
    const content = document.createDocumentFragment();
    for (const span of this.spans) content.append(span);
    box.replaceChildren(content);
    box.addEventListener("pointerover", (event) => on.over(event.pointerType === "mouse" ? tokenOf(event.target) : null));
    box.addEventListener("pointerleave", () => on.over(null));
    box.addEventListener("click", (event) => {
      const clicked = tokenOf(event.target);
      if (clicked !== null) on.pick(clicked);
    });
    box.addEventListener("keydown", (event) => this.press(event));
  }

  /** Shades the tokens, or none of them. */
  shade(values: Float32Array | null, top: number, theme: Theme): void {
    const colours = ramp(theme);
    const all = theme !== this.theme;
    this.theme = theme;
    for (let at = 0; at < this.spans.length; at++) {
      const step = values ? rootStep(values[at]!, top) : 0;
      if (step === this.steps[at] && !all) continue;
      this.steps[at] = step;
      const style = this.spans[at]!.style;
      style.backgroundColor = step ? colours.css[step]! : "";
      style.color = step ? (colours.lightInk[step] ? "#fff" : "#111") : "";
    }
  }

  /** Marks the tokens of the places that were sought. */
  mark(places: [first: number, last: number][]): void {
    for (const span of this.marked) span.classList.remove("sought");
    this.marked = places.flatMap(([first, last]) => this.spans.slice(first, last + 1));
    for (const span of this.marked) span.classList.add("sought");
  }

  /** Marks the chosen token and those of its word, or none. */
  choose(at: number | null, [first, end]: [first: number, end: number] = [at ?? 0, at === null ? 0 : at + 1]): void {
    for (const span of this.chosen) span.removeAttribute("aria-selected");
    this.chosen = this.spans.slice(first, end);
    for (const span of this.chosen) span.setAttribute("aria-selected", "true");
    if (at === null) return;
    this.at = at;
    this.box.setAttribute("aria-activedescendant", this.spans[at]!.id);
  }

  /** Brings a token into sight: as little as needed, or into the middle where it is out of it. */
  reveal(at: number, where: "nearest" | "center" = "nearest"): void {
    const [span, phone] = [this.spans[at]!, matchMedia("(max-width: 860px)").matches];
    const { top, bottom } = span.getBoundingClientRect();
    const seen = top >= (phone ? 0 : HEAD) && bottom <= innerHeight * (phone ? 0.66 : 1);
    if (where === "nearest" || !seen) span.scrollIntoView({ block: where });
  }

  private press(event: KeyboardEvent): void {
    const { at } = this;
    const to: Record<string, () => number> = {
      ArrowLeft: () => at - 1,
      ArrowRight: () => at + 1,
      ArrowUp: () => this.beside(-1),
      ArrowDown: () => this.beside(1),
      Home: () => 0,
      End: () => this.spans.length - 1,
    };
    const next = event.ctrlKey || event.metaKey || event.altKey ? undefined : to[event.key];
    if (!next) return;
    event.preventDefault();
    this.on.pick(Math.max(0, Math.min(this.spans.length - 1, next())));
    this.reveal(this.at);
  }

  /** The nearest token of the line above (-1) or below (1). */
  private beside(way: -1 | 1): number {
    const here = this.spans[this.at]!.getClientRects()[0]!;
    let best = this.at;
    let line: number | null = null;
    let nearest = Infinity;
    for (let at = this.at + way; at >= 0 && at < this.spans.length; at += way) {
      const there = this.spans[at]!.getClientRects()[0];
      if (!there || Math.abs(there.top - here.top) < 4) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) > 4) break;
      const gap = Math.abs(there.left - here.left);
      if (gap < nearest) [best, nearest] = [at, gap];
    }
    return best;
  }
}

/** Text enters through text nodes alone. A line end keeps its break and shows a sign, as does a token without text; signs are no part of the text. */
function spanOf(text: string, at: number, of: Text): HTMLElement {
  const span = document.createElement("span");
  span.id = `${of ? "s" : "t"}${at}`;
  span.setAttribute("role", "option");
  if (!of && at >= record.prompt_tokens) span.className = at === record.prompt_tokens ? "made first" : "made";
  if (texts[of]!.special[at]) span.classList.add("special");
  const turn = texts[of]!.turns?.find(([, start]) => start === at);
  if (turn) {
    const sign = document.createElement("i");
    sign.className = "turn";
    sign.dataset.sign = turn[0];
    span.append(sign);
  }
  const stands = stand(at, of);
  if (stands) {
    const sign = document.createElement("i");
    sign.className = "stand";
    sign.dataset.sign = stands;
    span.title = glyphs(at, of);
    span.append(sign);
  }
  text.split("\n").forEach((line, part) => {
    if (part) {
      const sign = document.createElement("i");
      sign.className = "end";
      span.append(sign, "\n");
    }
    span.append(line);
  });
  return span;
}

function tokenOf(target: EventTarget | null): number | null {
  const span = (target as HTMLElement | null)?.closest?.("[role=option]");
  return span ? Number(span.id.slice(1)) : null;
}
