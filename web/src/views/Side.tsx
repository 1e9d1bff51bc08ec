/** Beside the map and the text: which head, what it is known for, what the chosen token attends to, what is hidden. */
import { batch, effect } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { entropyRows, hasValues, header, isMarked, layers, received, record, sides, sinks, textsOf, threshold } from "../data";
import type { Edge } from "../edges";
import { called, grainsOf, GRAINS, written, type Grain, type GrainName } from "../grain";
import { CUT, ROLES, rolesOf, score, statistic, tabled } from "../roles";
import { chooseHead, chooseToken, floor, grain, head, hideSinks, key, layer, measure, mode, other, pane, picking, preview, shown, view, zoomed } from "../state";
import { keptBy } from "../shade";
import { weights } from "../weights";
import { begins, BESIDE, generated, headName, mechanismOf, nats, number, placed, placeName, visible } from "../words";
import { Find } from "./Find";
import { Neurons } from "./Neurons";
import { Next } from "./Next";
import { useLoaded } from "./useLoaded";

const LISTED = 8;
const named = layers.some(({ mechanism = "softmax" }) => mechanism !== "softmax");

export function Side({ children }: { children?: ComponentChildren }) {
  const surprised = view.value === "text" && mode.value === "surprise";
  const next = header.predicted > 0 && (surprised || textsOf(layer.value)[0] === 0) && <Next />;
  return (
    <aside class="side" aria-label="the chosen head and token">
      <Find />
      <Choices />
      {children}
      <Picker />
      {surprised && next}
      <Token />
      {!surprised && next}
      {view.value === "map" && <Neurons />}
      <Options />
    </aside>
  );
}

function Picker() {
  const [inLayer, of] = [layer.value, head.value];
  const [entropy, distance] = [statistic("entropy", inLayer, of), statistic("distance", inLayer, of)];
  const found = tabled(inLayer, of);
  const cause = found?.loss_rise ?? found?.loss_estimate;
  const error = found?.loss_rise == null ? found?.loss_estimate_error : found.loss_rise_error;
  const box = useChosenInSight();
  return (
    <section>
      <h2>{headName(inLayer, of)}</h2>
      {named && (
        <p class="small mechanism" title="what computes the weights of this layer">
          {mechanismOf(inLayer)}
        </p>
      )}
      <div ref={box} class="picker" role="group" aria-label="choose a head">
        {layers.map((each, place) => (
          <div key={each.index}>
            {begins(place) && <span class="stack">{begins(place)}</span>}
            <span class="layer">{each.index}</span>
            {Array.from({ length: each.heads }, (_, one) => (
              <button key={one} class={rolesOf(place, one)[0]?.name} aria-pressed={place === inLayer && one === of} aria-label={headName(place, one)} title={[headName(place, one), ...rolesOf(place, one).map(({ label }) => label)].join(" · ")} data-other={other.value?.layer === place && other.value.head === one && !other.value.side ? "" : undefined} onClick={(event) => pickHead(place, one, event.shiftKey)} />
            ))}
          </div>
        ))}
      </div>
      {view.value === "map" && <Compare />}
      <dl class="scores">
        {ROLES.map((role) => {
          const value = score(role, inLayer, of);
          return (
            value !== null && (
              <div key={role.name} title={role.meaning} class={value >= CUT ? "has" : ""}>
                <dt>{role.label}</dt>
                <dd>
                  <span class={`meter ${role.name}`}>
                    <span style={{ width: `${Math.min(1, value) * 100}%` }} />
                  </span>
                  <span class="value">{value.toFixed(2)}</span>
                </dd>
              </div>
            )
          );
        })}
      </dl>
      <p class="small">
        {entropy !== null && (
          <span title="mean over the rows; e to the entropy is the number of keys it would be spread over evenly">
            entropy {nats(entropy)} nats, as over {Math.exp(entropy).toFixed(Math.exp(entropy) < 10 ? 1 : 0)} keys
          </span>
        )}
        {distance !== null && ` · mean distance ${distance.toFixed(0)} token${distance.toFixed(0) === "1" ? "" : "s"}`}
        {typeof cause === "number" && (
          <span title="rise of the text’s loss, in nats a token, where the head is taken out">
            {` · without it the loss ${cause < 0 ? "falls" : "rises"} by ${Math.abs(cause).toFixed(3)}${typeof error === "number" ? ` ± ${error.toFixed(3)}` : ""}${found?.loss_rise == null ? ", estimated" : ""}`}
          </span>
        )}
      </p>
    </section>
  );
}

/** The picker scrolls so that the chosen head is in sight, and no further. */
function useChosenInSight() {
  const box = useRef<HTMLDivElement>(null);
  useEffect(
    () =>
      effect(() => {
        void [layer.value, head.value];
        requestAnimationFrame(() => {
          const [around, pressed] = [box.current, box.current?.querySelector<HTMLElement>("[aria-pressed=true]")];
          if (!around || !pressed) return;
          const [outer, inner] = [around.getBoundingClientRect(), pressed.getBoundingClientRect()];
          if (inner.top < outer.top + 4) around.scrollTop -= outer.top + 4 - inner.top;
          if (inner.bottom > outer.bottom - 4) around.scrollTop += inner.bottom - outer.bottom + 4;
        });
      }),
    [],
  );
  return box;
}

function pickHead(place: number, one: number, compared: boolean): void {
  if (picking.value || compared) other.value = { layer: place, head: one, side: 0 };
  else chooseHead(place, one);
  picking.value = false;
}

/** Which head stands beside the chosen one, and what is drawn of it. */
function Compare() {
  const nothing = (): void => void ([other.value, picking.value] = [null, false]);
  const before = (): void => void (other.value = { layer: layer.value, head: head.value, side: 1 });
  return (
    <div class="compare" role="group" aria-label="compare">
      <div class="segments">
        <span>Beside</span>
        <button aria-pressed={!other.value && !picking.value} onClick={nothing}>nothing</button>
        <button aria-pressed={picking.value || other.value?.side === 0} onClick={() => (picking.value = true)}>a head …</button>
        {sides.length > 1 && <button aria-pressed={other.value?.side === 1} onClick={before}>{BESIDE}</button>}
      </div>
      {picking.value && <p class="small">choose it above, or press Shift while you click one</p>}
      {other.value && (
        <div class="segments">
          <span>{placeName(other.value)}</span>
          <button aria-pressed={pane.value === "other"} onClick={() => (pane.value = "other")}>its map</button>
          <button aria-pressed={pane.value === "difference"} onClick={() => (pane.value = "difference")}>difference</button>
        </div>
      )}
    </div>
  );
}

function Token() {
  const [inLayer, of, by] = [layer.value, head.value, grain.value];
  const what = hasValues(inLayer) ? measure.value : "weight";
  const [rows, keys] = grainsOf(by, inLayer);
  const column = view.value === "text" && mode.value === "attended";
  const at = column && rows.text !== keys.text ? (preview.value ?? key.value ?? 0) : shown.value;
  const [mine, theirs] = column ? [keys, rows] : [rows, keys];
  const unit = mine.of[at]!;
  const known = useLoaded(() => Promise.all([weights(inLayer, of, 0, what, by), received(inLayer), entropyRows(inLayer), isMarked(inLayer) ? keptBy(inLayer, of) : null]), [inLayer, of, what, by]);
  const entropy = column || by === "words" ? NaN : (known?.[2][of]![at] ?? NaN);
  const found = known ? strongest(column ? known[0].edges.column(unit) : known[0].edges.row(unit), known[0].unit, theirs) : [];
  const computed = !record.rows || !known || column || !Number.isNaN(known[2][of]![at]!);
  return (
    <section class="token" data-token={at}>
      <h2>
        <q class="piece">{written(mine, unit)}</q> at {mine.starts[unit]}
        {generated(at, mine.text) && <span class="mark"> · generated</span>}
      </h2>
      <p class="small">
        {[
          mine.text === keys.text && by === "tokens" && `receives ${known ? number(known[1][of]![at]!) : "…"} on average`,
          !Number.isNaN(entropy) && `entropy of its row ${nats(entropy)} nats`,
        ]
          .filter(Boolean)
          .join(" · ")}
      </p>
      <h3>
        {column ? "is attended to by" : "attends to"}
        {what === "value" && ", by ‖A v‖"}
      </h3>
      {!computed ? (
        <p class="small">This row was not computed: {record.rows!.count} rows were sampled.</p>
      ) : (
        <Bars found={found.slice(0, LISTED)} kept={column ? null : (known?.[3] ?? null)} column={column} theirs={theirs} top={what === "value" ? (found[0]?.weight ?? 1) : 1} />
      )}
      {known && computed && (
        <p class="small">
          {[
            found.length > LISTED && `and ${found.length - LISTED} more of weights from ${threshold} up`,
            !found.length && `nothing from ${Math.max(threshold, floor.value)} up`,
            !column && known[3] && found.length > 0 && `${number(lasting(known[0].edges.row(unit), known[3], theirs))} of these weights goes to what the policy keeps; struck out: what it forgets`,
            !column && what === "weight" && found.length > 0 && `${number(Math.min(1, sum(known[0].edges.row(unit))))} of the row in weights from ${threshold} up`,
          ]
            .filter(Boolean)
            .join("; ")}
        </p>
      )}
    </section>
  );
}

function Bars({ found, kept, column, theirs, top }: { found: Edge[]; kept: Float32Array | null; column: boolean; theirs: Grain; top: number }) {
  return (
    <ol class="bars">
      {found.map((edge) => (
        <li key={edge.token}>
          <button aria-pressed={key.value === theirs.starts[edge.token]} title={`${column ? "choose" : "pin"} ${called(theirs, edge.token)}`} onClick={() => pick(theirs.starts[edge.token]!, column)}>
            <span class="bar" style={{ width: `${Math.min(1, edge.weight / top) * 100}%` }} />
            <span class={kept && !kept[theirs.starts[edge.token]!] ? "piece gone" : "piece"}>{visible(written(theirs, edge.token))}</span>
            <span class="at">{theirs.starts[edge.token]}</span>
            <span class="value">{number(edge.weight)}</span>
          </button>
        </li>
      ))}
    </ol>
  );
}

function pick(chosen: number, column: boolean): void {
  const [rows, keys] = textsOf(layer.value);
  if (view.value === "map" || (rows !== keys && !column)) key.value = chosen;
  else chooseToken(chosen, rows === keys ? null : key.value);
}

/** From the floor up, without what is hidden. */
function strongest(found: Edge[], unit: number, { of, text }: Grain): Edge[] {
  const hidden = hideSinks.value && !text ? new Set([...sinks].map((token) => of[token]!)) : new Set<number>();
  return found.filter((edge) => edge.weight >= floor.value * unit && !hidden.has(edge.token)).sort((a, b) => b.weight - a.weight);
}

/** The share of the weights that goes to keys that are kept. */
function lasting(found: Edge[], kept: Float32Array, { starts }: Grain): number {
  return sum(found.filter((edge) => kept[starts[edge.token]!])) / sum(found);
}

function sum(found: Edge[]): number {
  return found.reduce((total, edge) => total + edge.weight, 0);
}

function setGrain(name: GrainName): void {
  batch(() => ([grain.value, zoomed.value] = [name, null]));
}

/** What is shown of a head: A or ‖A v‖, between tokens or words. */
function Choices() {
  const values = hasValues(layer.value);
  return (
    <div class="choices">
      <div class="segments" role="group" aria-label="measure">
        <button aria-pressed={measure.value === "weight" || !values} title="the share of its attention that a query gives to a key" onClick={() => (measure.value = "weight")}>weights A</button>
        <button aria-pressed={measure.value === "value" && values} disabled={!values} title={values ? "the length of what the head takes from a key: the weight times the Euclidean norm of the key’s value, before the output projection" : "the record has no values of this layer"} onClick={() => (measure.value = "value")}>
          values ‖A v‖
        </button>
      </div>
      <div class="segments" role="group" aria-label="grain">
        {GRAINS.map((name) => (
          <button key={name} aria-pressed={grain.value === name} title={name === "words" ? "words by Unicode’s rules: the sum over the tokens of a key, the mean over those of a query" : "tokens, as the model reads them"} onClick={() => setGrain(name)}>
            {name}
          </button>
        ))}
      </div>
    </div>
  );
}

function Options() {
  const hidden = [...sinks].slice(0, 6).map((token) => placed(token)).join(", ") + (sinks.size > 6 ? " …" : "");
  return (
    <section class="options">
      <h2>Show</h2>
      <label>
        <input type="checkbox" checked={hideSinks.value} disabled={!sinks.size} onChange={(event) => (hideSinks.value = event.currentTarget.checked)} />
        <span title={hidden}>hide sinks and special tokens ({sinks.size})</span>
      </label>
      <label class="slider">
        <span>{floor.value ? `weights from ${floor.value.toFixed(2)}` : "all weights"}</span>
        <input type="range" min={0} max={0.5} step={0.01} value={floor.value} aria-label="least weight that is shown" onInput={(event) => (floor.value = Number(event.currentTarget.value))} />
      </label>
    </section>
  );
}
