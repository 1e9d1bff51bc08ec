/** The tokens as spans, built once; afterwards only the spans whose shade changes are touched. */
import { header, n, record } from "./data";
import { ramp, rootStep, type Theme } from "./colour";
import { chooseToken, preview, token } from "./state";
import { glyphs, stand } from "./words";

export class Tapestry {
  private readonly spans: HTMLElement[];
  private readonly steps = new Uint8Array(n);
  private theme: Theme | null = null;
  private chosen: HTMLElement | null = null;
  private marked: HTMLElement[] = [];

  constructor(private readonly box: HTMLElement) {
    this.spans = header.tokens.texts.map(spanOf);
    const content = document.createDocumentFragment();
    for (const span of this.spans) content.append(span);
    box.replaceChildren(content);
    box.addEventListener("pointerover", (event) => (preview.value = event.pointerType === "mouse" ? tokenOf(event.target) : null));
    box.addEventListener("pointerleave", () => (preview.value = null));
    box.addEventListener("click", (event) => {
      const clicked = tokenOf(event.target);
      if (clicked !== null) chooseToken(clicked);
    });
    box.addEventListener("keydown", (event) => this.press(event));
  }

  shade(values: Float32Array, top: number, theme: Theme): void {
    const colours = ramp(theme);
    const all = theme !== this.theme;
    this.theme = theme;
    for (let at = 0; at < n; at++) {
      const step = rootStep(values[at]!, top);
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

  choose(at: number): void {
    this.chosen?.removeAttribute("aria-selected");
    this.chosen = this.spans[at]!;
    this.chosen.setAttribute("aria-selected", "true");
    this.box.setAttribute("aria-activedescendant", this.chosen.id);
  }

  reveal(at: number): void {
    this.spans[at]!.scrollIntoView({ block: "nearest" });
  }

  private press(event: KeyboardEvent): void {
    const at = token.value;
    const to: Record<string, () => number> = {
      ArrowLeft: () => at - 1,
      ArrowRight: () => at + 1,
      ArrowUp: () => this.beside(-1),
      ArrowDown: () => this.beside(1),
      Home: () => 0,
      End: () => n - 1,
    };
    const next = event.ctrlKey || event.metaKey || event.altKey ? undefined : to[event.key];
    if (!next) return;
    event.preventDefault();
    chooseToken(next());
    this.reveal(token.value);
  }

  /** The nearest token of the line above (-1) or below (1). */
  private beside(way: -1 | 1): number {
    const here = this.spans[token.value]!.getClientRects()[0]!;
    let best = token.value;
    let line: number | null = null;
    let nearest = Infinity;
    for (let at = token.value + way; at >= 0 && at < n; at += way) {
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
function spanOf(text: string, at: number): HTMLElement {
  const span = document.createElement("span");
  span.id = `t${at}`;
  span.setAttribute("role", "option");
  if (at >= record.prompt_tokens) span.className = at === record.prompt_tokens ? "made first" : "made";
  if (header.tokens.special[at]) span.classList.add("special");
  const turn = header.tokens.turns?.find(([, start]) => start === at);
  if (turn) {
    const sign = document.createElement("i");
    sign.className = "turn";
    sign.dataset.sign = turn[0];
    span.append(sign);
  }
  const stands = stand(at);
  if (stands) {
    const sign = document.createElement("i");
    sign.className = "stand";
    sign.dataset.sign = stands;
    span.title = glyphs(at);
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
