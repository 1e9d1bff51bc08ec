/** The flow graph: which heads, networks and tokens the last state of a token is made of. */
import { batch, computed, signal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { layers } from "../data";
import { leading, routes, targets, top, usual, type Route } from "../flow";
import { inks } from "../save";
import { chooseHead, chooseToken, least, theme, view } from "../state";
import { alone, glyphs, number, placed } from "../words";
import { useSaved } from "./useSaved";

const [LEFT, BOTTOM, LISTED, WIDEST] = [36, 96, 12, 760];
const STEP = Math.max(14, Math.min(28, 560 / (top + 1)));
const readable = usual();
const from = computed(() => least.value ?? readable);
const shown = computed(() => leading(from.value));
/** The edge under the pointer, which may be gone from under it: what is not shown any more tells of no leaving. */
const pointed = signal<Route | null>(null);
const nothing = (): void => void (pointed.value = null);
const over = (edge: Route): { onPointerOver: () => void } => ({ onPointerOver: () => void (pointed.value = edge) });
const most = Math.max(...routes.filter(({ part }) => part === "attn").map(({ weight }) => weight), 0.01);

export function FlowView() {
  const drawing = useRef<SVGSVGElement>(null);
  useSaved({ name: () => `flow-${targets.join("-")}`, svg: () => drawing.current!.outerHTML, rows });
  useLayoutEffect(() => nothing, []);
  const edge = pointed.value && shown.value.includes(pointed.value) ? pointed.value : null;
  const heads = shown.value.filter(({ part }) => part === "attn").sort((a, b) => b.weight - a.weight);
  return (
    <section class="split flow" aria-label="flow" onPointerOverCapture={nothing} onPointerLeave={nothing}>
      <div class="stage">
        <p class="readout" role="status">
          {said(edge) || `how the last state of ${targets.map((token) => placed(token)).join(", ")} came about: ${shown.value.length} of ${routes.length} edges`}
        </p>
        <Graph drawing={drawing} />
      </div>
      <aside class="side" aria-label="edges">
        <label class="slider small">
          <span>shares of a state from {from.value.toFixed(3)}</span>
          <input type="range" min={0} max={0.3} step={0.001} value={from.value} aria-label="least share that is shown" onInput={(event) => (least.value = Number(event.currentTarget.value))} />
        </label>
        <p class="small">
          From the bottom up: a line over to another token is what a head took from it, a line upwards what stayed, a square what the feed-forward network added; as
          thick as its share of the state.
        </p>
        <section>
          <h2>Heads that carry most</h2>
          <ol class="bars">
            {heads.slice(0, LISTED).map((each) => (
              <li key={`${each.layer} ${each.head} ${each.to} ${each.source}`}>
                <button title={`open the map of ${said(each)}`} onClick={() => open(each)} {...over(each)}>
                  <span class="bar" style={{ width: `${(each.weight / most) * 100}%` }} />
                  <span class="piece">{`${alone(each.source).trim()} → ${alone(each.to).trim()}`}</span>
                  <span class="at">{`L${each.layer}H${each.head}`}</span>
                  <span class="value">{number(each.weight)}</span>
                </button>
              </li>
            ))}
          </ol>
          {!heads.length && <p class="small">No head has so large a share: move the slider to the left.</p>}
        </section>
      </aside>
    </section>
  );
}

function Graph({ drawing }: { drawing: { current: SVGSVGElement | null } }) {
  void theme.value;
  const { ink, muted, paper, line, pin } = inks();
  const tokens = [...new Set([...targets, ...shown.value.flatMap(({ to, source }) => [to, source])])].sort((a, b) => a - b);
  const wide = Math.max(22, Math.min(90, WIDEST / tokens.length));
  const place = new Map(tokens.map((token, at) => [token, LEFT + (at + 0.5) * wide]));
  const height = (top + 1) * STEP + 24;
  const up = (level: number): number => 12 + (top + 1 - level) * STEP;
  const [width, total] = [LEFT + tokens.length * wide + 12, height + BOTTOM];
  return (
    <div class="scroll">
      <svg ref={drawing} xmlns="http://www.w3.org/2000/svg" width={width} height={total} viewBox={`0 0 ${width} ${total}`} role="img" aria-label="flow graph" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="11">
        <rect width="100%" height="100%" fill={paper} />
        {Array.from({ length: top + 1 }, (_, layer) => (
          <g key={layer}>
            <line x1={LEFT} x2={width} y1={up(layer)} y2={up(layer)} stroke={line} stroke-width="0.5" />
            {(top < 16 || layer % 2 === 0) && <text x={LEFT - 8} y={up(layer + 0.5) + 4} fill={muted} text-anchor="end">{layer}</text>}
          </g>
        ))}
        {shown.value.map((each) => (
          <Edge key={`${each.layer} ${each.part} ${each.head} ${each.to} ${each.source}`} edge={each} x0={place.get(each.source)!} x1={place.get(each.to)!} y0={up(each.layer)} y1={up(each.layer + 1)} colours={{ stays: muted, head: pin, network: ink }} />
        ))}
        {tokens.map((token) => (
          <text key={token} x={place.get(token)} y={height - 4} fill={targets.includes(token) ? pin : ink} font-weight={targets.includes(token) ? 700 : 400} text-anchor="end" dominant-baseline="central" transform={`rotate(-60 ${place.get(token)} ${height - 4})`} xml:space="preserve">
            {`${short(alone(token).trim())} ${token}`}
          </text>
        ))}
      </svg>
    </div>
  );
}

interface Drawn {
  edge: Route;
  x0: number;
  x1: number;
  y0: number;
  y1: number;
  colours: { stays: string; head: string; network: string };
}

function Edge({ edge, x0, x1, y0, y1, colours }: Drawn) {
  const about = over(edge);
  const title = <title>{said(edge)}</title>;
  if (edge.part === "resid") return <line {...about} x1={x0} x2={x1} y1={y0} y2={y1} stroke={colours.stays} stroke-opacity="0.55" stroke-width={0.5 + 3 * edge.weight}>{title}</line>;
  const side = 3 + 9 * Math.sqrt(edge.weight);
  if (edge.part === "mlp") return <rect {...about} x={x1 - side / 2} y={(y0 + y1 - side) / 2} width={side} height={side} fill={colours.network} fill-opacity="0.75">{title}</rect>;
  const path = x0 === x1 ? `M${x0} ${y0}c-14 -4 -14 ${y1 - y0 + 4} 0 ${y1 - y0}` : `M${x0} ${y0}C${x0} ${(y0 + y1) / 2} ${x1} ${(y0 + y1) / 2} ${x1} ${y1}`;
  return (
    <g {...about} class="carries" onClick={() => open(edge)} fill="none" stroke={colours.head}>
      {title}
      <path d={path} stroke-opacity="0.8" stroke-width={1 + (7 * edge.weight) / most} />
      <path d={path} stroke-opacity="0" stroke-width="10" />
    </g>
  );
}

function said(edge: Route | null): string {
  if (!edge) return "";
  const share = `${number(edge.weight)} of the state of ${placed(edge.to)}`;
  if (edge.part === "mlp") return `layer ${edge.layer}, feed-forward network: ${share}`;
  if (edge.part === "resid") return `layer ${edge.layer}, what stays as it was: ${share}`;
  return `layer ${edge.layer}, head ${edge.head}, from ${placed(edge.source)}: ${share}`;
}

/** The map of the head, at the pair. */
function open({ layer, head, to, source }: Route): void {
  const at = layers.findIndex(({ index }) => index === layer);
  if (at < 0 || head === null) return;
  batch(() => {
    chooseHead(at, head);
    chooseToken(to, source);
    view.value = "map";
  });
}

const short = (text: string): string => (text.length > 12 ? `${text.slice(0, 11)}…` : text);

function rows(): (string | number | null)[][] {
  return [["layer", "part", "head", "from", "from_text", "to", "to_text", "share"], ...shown.value.map(({ layer, part, head, source, to, weight }) => [layer, part, head, source, glyphs(source), to, glyphs(to), weight])];
}
