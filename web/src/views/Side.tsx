/** Beside the map and the text: which head, what it is known for, what the chosen token attends to, what is hidden. */
import { effect } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { edges, entropyRows, layers, received, record, sides, sinks, threshold } from "../data";
import type { Edge } from "../edges";
import { CUT, ROLES, rolesOf, score, statistic, tabled } from "../roles";
import { chooseHead, chooseToken, floor, head, hideSinks, key, layer, mode, other, pane, picking, shown, token, view } from "../state";
import { alone, glyphs, headName, mechanismOf, number, placed, placeName } from "../words";
import { Find } from "./Find";
import { Neurons } from "./Neurons";
import { useLoaded } from "./useLoaded";

const LISTED = 8;
const named = layers.some(({ mechanism = "softmax" }) => mechanism !== "softmax");

export function Side({ children }: { children?: ComponentChildren }) {
  return (
    <aside class="side" aria-label="the chosen head and token">
      <Find />
      {children}
      <Picker />
      <Token />
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
            entropy {entropy.toFixed(2)} nats, as over {Math.exp(entropy).toFixed(Math.exp(entropy) < 10 ? 1 : 0)} keys
          </span>
        )}
        {distance !== null && ` · mean distance ${distance.toFixed(0)} tokens`}
        {typeof cause === "number" && (
          <span title="rise of the text’s loss, in nats a token, where the head is taken out">
            {` · without it the loss rises by ${cause.toFixed(3)}${found?.loss_rise == null ? ", estimated" : ""}`}
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
        {sides.length > 1 && <button aria-pressed={other.value?.side === 1} onClick={before}>before</button>}
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
  const [inLayer, of, at] = [layer.value, head.value, shown.value];
  const known = useLoaded(() => Promise.all([edges(inLayer, of), received(inLayer), entropyRows(inLayer)]), [inLayer, of]);
  const entropy = known?.[2][of]![at] ?? NaN;
  const column = view.value === "text" && mode.value === "attended";
  const found = known ? strongest(column ? known[0].column(at) : known[0].row(at)) : [];
  const computed = !record.rows || !Number.isNaN(entropy);
  return (
    <section class="token" data-token={at}>
      <h2>
        <q class="piece">{glyphs(at)}</q> at {at}
      </h2>
      <p class="small">
        receives {known ? number(known[1][of]![at]!) : "…"} on average{Number.isNaN(entropy) ? "" : ` · entropy of its row ${entropy.toFixed(2)} nats`}
      </p>
      <h3>{column ? "is attended to by" : "attends to"}</h3>
      {!computed && !column ? (
        <p class="small">This row was not computed: {record.rows!.count} rows were sampled.</p>
      ) : (
        <Bars found={found.slice(0, LISTED)} column={column} />
      )}
      {known && computed && (
        <p class="small">
          {found.length > LISTED && `and ${found.length - LISTED} more from ${threshold} up`}
          {!found.length && `nothing from ${Math.max(threshold, floor.value)} up`}
          {!column && found.length > 0 && `${found.length > LISTED ? "; " : ""}${number(Math.min(1, sum(known[0].row(at))))} of the row in weights from ${threshold} up`}
        </p>
      )}
    </section>
  );
}

function Bars({ found, column }: { found: Edge[]; column: boolean }) {
  return (
    <ol class="bars">
      {found.map((edge) => (
        <li key={edge.token}>
          <button aria-pressed={key.value === edge.token} title={column ? `choose ${placed(edge.token)}` : `pin ${placed(token.value)} → ${placed(edge.token)}`} onClick={() => pick(edge.token)}>
            <span class="bar" style={{ width: `${edge.weight * 100}%` }} />
            <span class="piece">{alone(edge.token)}</span>
            <span class="at">{edge.token}</span>
            <span class="value">{number(edge.weight)}</span>
          </button>
        </li>
      ))}
    </ol>
  );
}

function pick(chosen: number): void {
  if (view.value === "map") key.value = chosen;
  else chooseToken(chosen);
}

function strongest(found: Edge[]): Edge[] {
  return found
    .filter((edge) => edge.weight >= floor.value && !(hideSinks.value && sinks.has(edge.token)))
    .sort((a, b) => b.weight - a.weight);
}

function sum(found: Edge[]): number {
  return found.reduce((total, edge) => total + edge.weight, 0);
}

function Options() {
  const hidden = [...sinks].slice(0, 6).map(placed).join(", ") + (sinks.size > 6 ? " …" : "");
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
