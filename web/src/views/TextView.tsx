/** The text, shaded by what the chosen token attends to, by what attends to it, or by what each token receives. */
import { batch, computed, effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { ramp, rootStep } from "../colour";
import { hasValues, header, isMarked, layers, lengths, record, texts, textsOf, threshold, type Text } from "../data";
import { matches } from "../find";
import { called, grainOf, grainsOf } from "../grain";
import { inks, svgOf, svgText } from "../save";
import { chooseToken, floor, grain, head, hideSinks, key, layer, measure, mode, MODES, preview, shown, span, SPANS, theme, token } from "../state";
import { shader, sifted, textsShaded, topOf, unpackAhead, type Shader, type Wanted } from "../shade";
import { Tapestry } from "../tapestry";
import { glyphs, number, stackOf } from "../words";
import { Legend } from "./Legend";
import { Side } from "./Side";
import { useSaved } from "./useSaved";

const MODE_NAMES = { attends: "attends to", attended: "attended by", received: "received", surprise: "surprise", kept: "kept" };
const SPAN_NAMES = { head: "this head", layer: "its layer", all: "all heads" };
const TEXT_NAMES = ["what the decoder wrote", "what the encoder read"];
const OFFERED = MODES.filter((name) => (name !== "surprise" || header.predicted) && (name !== "kept" || header.marked.length));

const loaded = signal<{ of: Wanted; shader: Shader } | null>(null);
const share = signal(0);
const wanted = computed((): Wanted => ({ mode: mode.value, span: span.value, layer: layer.value, head: head.value, measure: hasValues(layer.value) ? measure.value : "weight", grain: grain.value }));
/** Null until what is wanted now is there. */
const ready = computed(() => (loaded.value?.of === wanted.value ? loaded.value.shader : null));
/** The text that is shaded, and the one in which a token is chosen. */
const places = computed(() => textsShaded(wanted.value));
const choosing = computed(() => places.value[1]);
const cross = computed(() => places.value[0] !== places.value[1]);
/** The chosen token, of the queries or, for what attends to it in another text, of the keys. */
const at = computed(() => (cross.value && mode.value === "attended" ? (preview.value ?? key.value ?? 0) : shown.value));
const values = computed(() => ready.value && sifted(ready.value.of(at.value), floor.value * ready.value.unit, hideSinks.value && !places.value[0]));
const top = computed(() => (values.value ? topOf(values.value, mode.value) : 1));

export function TextView() {
  useSaved({ name: () => `text-${layers[layer.value]!.index}-${head.value}`, svg: textSvg, rows, missing });
  useEffect(() => {
    const ends = [effect(load), unpackAhead(), effect(() => (void choosing.value, () => void (preview.value = null)))];
    return () => ends.forEach((end) => end());
  }, []);
  const shownTexts = [...new Set([places.value[1], places.value[0]])];
  return (
    <section class="split text" aria-label="text">
      <div class="stage">
        <div class="controls">
          <div class="bar">
            <Segments label="Shade by" names={MODE_NAMES} all={OFFERED} chosen={mode.value} choose={(name) => (mode.value = name)} />
            {mode.value !== "surprise" && <Segments label="of" names={SPAN_NAMES} all={SPANS} chosen={span.value} choose={(name) => (span.value = name)} />}
          </div>
          <p class="readout" role="status">
            {sentence()}
          </p>
        </div>
        {shownTexts.map((text) => (
          <OneText key={text} text={text} named={lengths.length > 1} />
        ))}
      </div>
      <Side>
        <Legend title={legend()} ticks={(values.value ? [0, 0.5, 1] : []).map((part) => ({ at: part, label: `${part === 1 && mode.value === "received" ? "≥ " : ""}${number(part * part * top.value)}` }))} />
      </Side>
    </section>
  );
}

/** One of the texts, with the chosen token or its shades or both. */
function OneText({ text, named }: { text: Text; named: boolean }) {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const tapestry = new Tapestry(box.current!, text, {
      over: (token) => (preview.value = choosing.value === text ? token : null),
      pick: (token) => pick(token, text),
    });
    const chosen = (): number | null => (textsOf(layer.value)[0] === text ? token.value : key.value);
    const ends = [
      effect(() => tapestry.shade(places.value[0] === text ? values.value : null, top.value, theme.value)),
      effect(() => {
        const one = chosen();
        const { of, starts } = grainOf(grain.value, text);
        tapestry.choose(one, one === null ? undefined : [starts[of[one]!]!, starts[of[one]! + 1]!]);
        if (one !== null && !text && matches.value.length) tapestry.reveal(one, "center");
      }),
      effect(() => tapestry.mark(text ? [] : matches.value)),
    ];
    if (choosing.value === text) {
      box.current!.focus({ preventScroll: true });
      tapestry.reveal(chosen() ?? 0, "center");
    }
    return () => ends.forEach((end) => end());
  }, [text]);
  return (
    <>
      {named && <h2 class="which">{TEXT_NAMES[text]}</h2>}
      <div ref={box} class="tapestry" tabIndex={0} role="listbox" aria-label="tokens of the text; arrow keys move, click chooses" />
    </>
  );
}

/** A click in the queries' text chooses the query, in another the key. */
function pick(chosen: number, text: Text): void {
  if (textsOf(layer.value)[0] === text) chooseToken(chosen, cross.value ? key.value : null);
  else batch(() => ([key.value, preview.value] = [chosen, null]));
}

function legend(): string {
  if (mode.value === "surprise") return "surprise −ln p, in nats, square-root scale";
  if (mode.value === "kept") return span.value === "head" ? "1: kept, 0: forgotten" : "share of the heads that keep the token, square-root scale";
  const what = `${wanted.value.measure === "value" ? "‖A v‖" : "weight"}${mode.value === "received" ? " received, by evidence" : span.value === "head" ? "" : ", mean over heads"}`;
  return `${what}, square-root scale`;
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

/** What shades are without, in words; nothing where they are there. */
function missing(): string {
  if (mode.value === "kept" && !isMarked(layer.value)) return `layer ${layers[layer.value]!.index} keeps no cache that can forget`;
  return ready.value ? "" : `unpacking ${mode.value === "surprise" ? "what was expected" : place()} … ${Math.round(share.value * 100)} %`;
}

/** Over what shades are averaged. */
function place(): string {
  const inLayer = layers[layer.value]!.index;
  const group = stackOf(layer.value) && ` of the ${stackOf(layer.value)} layers`;
  return span.value === "head" ? `head ${head.value} of layer ${inLayer}` : span.value === "layer" ? `the heads of layer ${inLayer}` : `all heads${group}`;
}

function sentence(): string {
  if (missing()) return missing();
  const where = place();
  if (mode.value === "surprise") return `how little the model expected each ${grain.value === "words" ? "word (the sum over its tokens)" : "token"}: −ln of the probability that it gave it`;
  const below = span.value === "head" && grain.value === "tokens" ? "" : `; weights below ${threshold} count as 0`;
  const merge = grain.value === "words" ? "; of words: sum over keys, mean over queries" : "";
  if (mode.value === "kept") return `what ${record.analyses!.kept!.policy}, budget ${record.analyses!.kept!.budget}, keeps of the prompt in ${where}`;
  const [rows, keys] = grainsOf(grain.value, layer.value);
  if (mode.value === "attends") return `what ${called(rows, rows.of[at.value]!)} attends to in ${where}${merge}${below}`;
  if (mode.value === "attended") return `what attends to ${called(keys, keys.of[at.value]!)} in ${where}${merge}${below}`;
  return `what each ${grain.value === "words" ? "word" : "token"} receives in ${where}, on average over the queries that may see it; tokens that few may see count less`;
}

function load(): void {
  const asked = wanted.value;
  const same = (): boolean => asked === wanted.peek();
  share.value = 0;
  if (asked.mode === "kept" && !isMarked(asked.layer)) return;
  void shader(asked, (done) => same() && (share.value = done)).then((shade) => same() && (loaded.value = { of: asked, shader: shade }));
}

/** A row a token: its text and what it is shaded by. */
function rows(): (string | number | null)[][] {
  const now = values.value;
  const text = places.value[0];
  return [["token", "text", "value"], ...texts[text]!.texts.map((_, at) => [at, glyphs(at, text), now ? now[at]! : null])];
}

const [WIDE, LETTER, LINE] = [96, 7.83, 20];

/** The text in lines of fixed width, each token on its shade. */
function textSvg(): string {
  const { ink, muted, paper, pin } = inks();
  const [colours, now] = [ramp(theme.value), values.value];
  const parts = [svgText({ x: 12, y: 16, text: sentence(), colour: muted, size: 12 })];
  let [line, column] = [0, 0];
  const [shaded] = places.value;
  for (let at = 0; at < texts[shaded]!.ids.length; at++) {
    const step = now ? rootStep(now[at]!, top.value) : 0;
    for (const [piece, text] of glyphs(at, shaded).split("⏎").entries()) {
      if (piece) [line, column] = [line + 1, 0];
      if (column && column + text.length > WIDE) [line, column] = [line + 1, 0];
      const [x, y, width] = [12 + column * LETTER, 34 + line * LINE, text.length * LETTER];
      if (step && width) parts.push(`<rect x="${x}" y="${y}" width="${width}" height="${LINE - 2}" fill="${colours.css[step]}"/>`);
      if (at === token.value && shaded === choosing.value && width) parts.push(`<rect x="${x}" y="${y}" width="${width}" height="${LINE - 2}" fill="none" stroke="${pin}" stroke-width="2"/>`);
      if (text) parts.push(svgText({ x, y: y + LINE / 2 - 1, text, colour: step ? (colours.lightInk[step] ? "#fff" : "#111") : ink, size: 13 }));
      column += text.length;
    }
  }
  return svgOf(24 + WIDE * LETTER, 50 + (line + 1) * LINE, paper, parts);
}
