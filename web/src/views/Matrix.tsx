/** Layer × head: one score of every head, in colour. The way in. */
import { ramp, STEPS } from "../colour";
import { layers, sides } from "../data";
import { has, ROLES } from "../roles";
import { inks, svgOf, svgText } from "../save";
import { scoreNamed, SCORES, valueOf, type Score } from "../scores";
import { chooseHead, head, layer, matrix, matrixOf, OF, role, theme, view } from "../state";
import { begins, headName } from "../words";
import { Legend } from "./Legend";

const WIDEST = Math.max(...layers.map((each) => each.heads));
const NAMES = { this: "this record", before: "the one beside", change: "change" };

export function Matrix() {
  const score = scoreNamed(matrix.value);
  const scale = scaleOf(score);
  const wanted = ROLES.find(({ name }) => name === role.value);
  const chosen = valueOf(score, matrixOf.value, layer.value, head.value);
  return (
    <section class="matrix" aria-label="matrix of heads">
      <label class="choose">
        <span>Score</span>
        <select aria-label="score of the matrix" value={score.name} onChange={(event) => (matrix.value = event.currentTarget.value)}>
          {SCORES.map((each) => (
            <option key={each.name} value={each.name}>
              {each.label}
            </option>
          ))}
        </select>
      </label>
      {sides.length > 1 && (
        <div class="segments" role="group" aria-label="of which record">
          {OF.map((each) => (
            <button key={each} aria-pressed={matrixOf.value === each} onClick={() => (matrixOf.value = each)}>
              {NAMES[each]}
            </button>
          ))}
        </div>
      )}
      <p class="small">{score.meaning}</p>
      <div class="cells" style={{ "--columns": WIDEST }} role="grid" aria-label={`${score.label} of every head; arrow keys move, Enter opens the map`} onKeyDown={walk}>
        <div role="row" class="line" aria-hidden="true">
          <span />
          {Array.from({ length: WIDEST }, (_, of) => (
            <span key={of}>{WIDEST <= 16 || of % 4 === 0 ? of : ""}</span>
          ))}
        </div>
        {layers.map((each, inLayer) => (
          <div role="row" class="line" key={each.index}>
            {begins(inLayer) && <span class="stack">{begins(inLayer)}</span>}
            <span role="rowheader">{each.index}</span>
            {Array.from({ length: each.heads }, (_, of) => {
              const value = valueOf(score, matrixOf.value, inLayer, of);
              const said = `${headName(inLayer, of)}: ${score.label} ${written(value)}`;
              const here = inLayer === layer.value && of === head.value;
              return (
                <button
                  key={of}
                  role="gridcell"
                  data-cell={`${inLayer}/${of}`}
                  class={wanted && !has(wanted, inLayer, of) ? "dim" : ""}
                  style={{ background: value === null ? "" : scale.colour(value) }}
                  aria-selected={here}
                  aria-label={said}
                  title={said}
                  tabIndex={here ? 0 : -1}
                  onClick={() => chooseHead(inLayer, of)}
                  onDblClick={() => (view.value = "map")}
                />
              );
            })}
          </div>
        ))}
      </div>
      <Legend title={`${score.label}${matrixOf.value === "change" && sides.length > 1 ? ", change" : ""}, linear scale; empty: not measured`} ticks={scale.ticks} signed={scale.signed} />
      <p class="chosen" role="status">
        {headName(layer.value, head.value)}: <b>{written(chosen)}</b> <button class="open" onClick={() => (view.value = "map")}>open its map</button>
      </p>
    </section>
  );
}

interface Scale {
  signed: boolean;
  colour: (value: number) => string;
  ticks: { at: number; label: string }[];
}

/** From nothing to the most, or for numbers of either sign as far to both sides. */
function scaleOf(score: Score): Scale {
  const of = sides.length > 1 ? matrixOf.value : "this";
  const values = layers.flatMap((each, inLayer) => Array.from({ length: each.heads }, (_, at) => valueOf(score, of, inLayer, at) ?? 0));
  const signed = score.signed === true || of === "change";
  const top = (of === "change" ? 0 : (score.most ?? 0)) || Math.max(...values.map(Math.abs), 1e-9);
  const low = signed ? -top : 0;
  const colours = ramp(theme.value, signed).css;
  return {
    signed,
    colour: (value) => colours[Math.max(0, Math.min(STEPS - 1, Math.round(((value - low) / (top - low)) * (STEPS - 1))))]!,
    ticks: [0, 0.5, 1].map((at) => ({ at, label: written(low + at * (top - low)) })),
  };
}

function written(value: number | null): string {
  if (value === null) return "not measured";
  return value !== 0 && Math.abs(value) < 0.01 ? value.toPrecision(2) : value.toFixed(Math.abs(value) >= 100 ? 0 : 2);
}

function walk(event: KeyboardEvent): void {
  const steps: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const by = steps[event.key];
  if (event.key === "Enter") view.value = "map";
  else if (by) chooseHead(layer.value + by[0], head.value + by[1]);
  else return;
  event.preventDefault();
  const grid = event.currentTarget as HTMLElement;
  requestAnimationFrame(() => grid.querySelector<HTMLElement>("[tabindex='0']")?.focus());
}

/** The matrix as a picture. */
export function matrixSvg(): string {
  const [score, side, left, top] = [scoreNamed(matrix.value), 18, 44, 44];
  const scale = scaleOf(score);
  const { ink, muted, paper, unseen } = inks();
  const parts = [svgText({ x: left, y: 14, text: `${score.label} by layer and head`, colour: ink, size: 13 })];
  layers.forEach((each, inLayer) => {
    const y = top + inLayer * side;
    parts.push(svgText({ x: left - 6, y: y + side / 2, text: String(each.index), colour: muted, end: true }));
    for (let of = 0; of < each.heads; of++) {
      const value = valueOf(score, matrixOf.value, inLayer, of);
      parts.push(`<rect x="${left + of * side}" y="${y}" width="${side - 1}" height="${side - 1}" fill="${value === null ? unseen : scale.colour(value)}"/>`);
    }
  });
  for (let of = 0; of < WIDEST; of++) if (WIDEST <= 16 || of % 4 === 0) parts.push(svgText({ x: left + of * side + 4, y: top - 10, text: String(of), colour: muted }));
  const [y, width] = [top + layers.length * side + 14, Math.max(180, WIDEST * side)];
  for (let at = 0; at < 60; at++) parts.push(`<rect x="${left + (at * width) / 60}" y="${y}" width="${width / 60 + 0.5}" height="8" fill="${ramp(theme.value, scale.signed).css[Math.round((at / 59) * (STEPS - 1))]}"/>`);
  for (const { at, label } of scale.ticks) parts.push(svgText({ x: left + at * width, y: y + 18, text: label, colour: muted, end: at === 1 }));
  return svgOf(left + Math.max(WIDEST * side, width) + 60, y + 34, paper, parts);
}
