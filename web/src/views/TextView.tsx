/** The text, shaded by what the chosen token attends to, by what attends to it, or by what each token receives. */
import { computed, effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { layers, threshold } from "../data";
import { floor, head, hideSinks, layer, mode, MODES, shown, span, SPANS, theme, token } from "../state";
import { shader, sifted, topOf } from "../shade";
import { Tapestry } from "../tapestry";
import { number, placed } from "../words";
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
      effect(() => tapestry.choose(token.value)),
    ];
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
