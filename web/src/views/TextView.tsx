/** The text, shaded by what the chosen token attends to, by what attends to it, or by what each token receives. */
import { computed, effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ramp, rootStep } from "../colour";
import { header, layers, n, threshold } from "../data";
import { matches } from "../find";
import { inks, shown as saved, svgOf, svgText } from "../save";
import { floor, head, hideSinks, layer, mode, MODES, shown, span, SPANS, theme, token } from "../state";
import { shader, sifted, topOf } from "../shade";
import { Tapestry } from "../tapestry";
import { glyphs, number, placed } from "../words";
import { Legend } from "./Legend";
import { Side } from "./Side";

const MODE_NAMES = { attends: "attends to", attended: "attended by", received: "received" };
const SPAN_NAMES = { head: "this head", layer: "its layer", all: "all heads" };

const ready = signal<((token: number) => Float32Array) | null>(null);
const share = signal(0);
const values = computed(() => ready.value && sifted(ready.value(shown.value), floor.value, hideSinks.value));
const top = computed(() => (values.value ? topOf(values.value, mode.value) : 1));

export function TextView() {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const tapestry = new Tapestry(box.current!);
    const ends = [
      effect(load),
      effect(() => {
        if (values.value) tapestry.shade(values.value, top.value, theme.value);
      }),
      effect(() => {
        tapestry.choose(token.value);
        if (matches.value.length) tapestry.reveal(token.value);
      }),
      effect(() => tapestry.mark(matches.value)),
    ];
    saved.value = { name: `text-${layers[layer.value]!.index}-${head.value}`, svg: textSvg, rows };
    box.current!.focus({ preventScroll: true });
    tapestry.reveal(token.value);
    return () => ends.forEach((end) => end());
  }, []);
  return (
    <section class="split text" aria-label="text">
      <div class="stage">
        <div class="bar">
          <Segments label="Shade by" names={MODE_NAMES} all={MODES} chosen={mode.value} choose={(name) => (mode.value = name)} />
          <Segments label="of" names={SPAN_NAMES} all={SPANS} chosen={span.value} choose={(name) => (span.value = name)} />
        </div>
        <p class="readout" role="status">
          {sentence()}
        </p>
        <div ref={box} class="tapestry" tabIndex={0} role="listbox" aria-label="tokens of the text; arrow keys move, click chooses" />
      </div>
      <Side>
        <Legend
          title={mode.value === "received" ? "weight received, by evidence, square-root scale" : `weight${span.value === "head" ? "" : ", mean over heads"}, square-root scale`}
          ticks={[0, 0.5, 1].map((at) => ({ at, label: `${at === 1 && mode.value === "received" ? "≥ " : ""}${number(at * at * top.value)}` }))}
        />
      </Side>
    </section>
  );
}

interface Choice<T extends string> {
  label: string;
  names: Record<T, string>;
  all: readonly T[];
  chosen: T;
  choose: (name: T) => void;
}

function Segments<T extends string>({ label, names, all, chosen, choose }: Choice<T>) {
  return (
    <div class="segments" role="group" aria-label={label}>
      <span>{label}</span>
      {all.map((name) => (
        <button key={name} aria-pressed={chosen === name} onClick={() => choose(name)}>
          {names[name]}
        </button>
      ))}
    </div>
  );
}

function sentence(): string {
  const where = span.value === "head" ? `head ${head.value} of layer ${layers[layer.value]!.index}` : span.value === "layer" ? `the heads of layer ${layers[layer.value]!.index}` : "all heads";
  if (!ready.value) return `unpacking ${where} … ${Math.round(share.value * 100)} %`;
  const below = span.value === "head" ? "" : `; weights below ${threshold} count as 0`;
  if (mode.value === "attends") return `what ${placed(shown.value)} attends to in ${where}${below}`;
  if (mode.value === "attended") return `what attends to ${placed(shown.value)} in ${where}${below}`;
  return `what each token receives in ${where}, on average over the queries that may see it; tokens that few may see count less`;
}

function load(): void {
  const wanted = { mode: mode.value, span: span.value, layer: layer.value, head: head.value };
  const same = (): boolean => wanted.mode === mode.peek() && wanted.span === span.peek() && wanted.layer === layer.peek() && wanted.head === head.peek();
  ready.value = null;
  share.value = 0;
  void shader(wanted, (done) => same() && (share.value = done)).then((shade) => same() && (ready.value = shade));
}

/** A row a token: its text and what it is shaded by. */
function rows(): (string | number | null)[][] {
  const now = values.value;
  return [["token", "text", "value"], ...header.tokens.texts.map((_, at) => [at, glyphs(at), now ? now[at]! : null])];
}

const [WIDE, LETTER, LINE] = [96, 7.83, 20];

/** The text in lines of fixed width, each token on its shade. */
function textSvg(): string {
  const { ink, muted, paper, pin } = inks();
  const [colours, now] = [ramp(theme.value), values.value];
  const parts = [svgText({ x: 12, y: 16, text: sentence(), colour: muted, size: 12 })];
  let [line, column] = [0, 0];
  for (let at = 0; at < n; at++) {
    const step = now ? rootStep(now[at]!, top.value) : 0;
    for (const [piece, text] of glyphs(at).split("⏎").entries()) {
      if (piece) [line, column] = [line + 1, 0];
      if (column && column + text.length > WIDE) [line, column] = [line + 1, 0];
      const [x, y, width] = [12 + column * LETTER, 34 + line * LINE, text.length * LETTER];
      if (step && width) parts.push(`<rect x="${x}" y="${y}" width="${width}" height="${LINE - 2}" fill="${colours.css[step]}"/>`);
      if (at === token.value && width) parts.push(`<rect x="${x}" y="${y}" width="${width}" height="${LINE - 2}" fill="none" stroke="${pin}" stroke-width="2"/>`);
      if (text) parts.push(svgText({ x, y: y + LINE / 2 - 1, text, colour: step ? (colours.lightInk[step] ? "#fff" : "#111") : ink, size: 13 }));
      column += text.length;
    }
  }
  return svgOf(24 + WIDE * LETTER, 50 + (line + 1) * LINE, paper, parts);
}
