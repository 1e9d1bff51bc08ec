/** All heads at a glance: maps, roles, entropies. */
import { useEffect, useRef } from "preact/hooks";
import { layers, n } from "../data";
import { CUT, ROLES, rolesOf, score, statistic } from "../roles";
import { chooseHead, head, layer, order, ORDERS, role, view } from "../state";
import { headName, mechanismOf } from "../words";
import { Legend } from "./Legend";
import { Thumbnail } from "./Thumbnail";

type Place = readonly [layer: number, head: number];

const ALL: Place[] = layers.flatMap((each, place) => Array.from({ length: each.heads }, (_, of) => [place, of] as const));
const WIDEST = Math.max(...layers.map((each) => each.heads));

export function Heads() {
  const grid = useRef<HTMLDivElement>(null);
  useEffect(() => grid.current!.querySelector<HTMLElement>("[tabindex='0']")?.focus({ preventScroll: true }), []);
  const places = arranged();
  const byLayer = order.value === "layer";
  return (
    <section class="heads" aria-label="all heads">
      <div class="bar">
        <div class="segments" role="group" aria-label="order of the heads">
          <span>Order</span>
          {ORDERS.map((name) => (
            <button key={name} aria-pressed={order.value === name} onClick={() => (order.value = name)}>
              {name}
            </button>
          ))}
        </div>
        <div class="chips" role="group" aria-label="roles">
          {ROLES.map((each) => {
            const found = ALL.filter(([place, of]) => (score(each, place, of) ?? 0) >= CUT).length;
            return (
              <button key={each.name} class={`chip ${each.name}`} title={each.meaning} disabled={!found} aria-pressed={role.value === each.name} onClick={() => (role.value = role.value === each.name ? null : each.name)}>
                {each.label} <span>{found}</span>
              </button>
            );
          })}
        </div>
        <Legend />
      </div>
      <div ref={grid} class={byLayer ? "grid by-layer" : "grid"} style={{ "--columns": byLayer ? WIDEST : Math.min(8, WIDEST) }} role="grid" aria-label="heads; arrow keys move, Enter opens the map" onKeyDown={(event) => walk(event, places, grid.current!)}>
        {byLayer && (
          <div class="row columns" aria-hidden="true">
            <span />
            {Array.from({ length: WIDEST }, (_, of) => (
              <span key={of}>{of}</span>
            ))}
          </div>
        )}
        {rowsOf(places, byLayer).map((row, at) => (
          <div class="row" role="row" key={at}>
            {byLayer && (
              <span class="layer" role="rowheader" title={mechanismOf(row[0]![0])}>
                <span>layer </span>
                {layers[row[0]![0]]!.index}
              </span>
            )}
            {row.map((place) => (
              <Card key={place.join("/")} place={place} named={!byLayer} />
            ))}
          </div>
        ))}
      </div>
    </section>
  );
}

function Card({ place: [inLayer, of], named }: { place: Place; named: boolean }) {
  const roles = rolesOf(inLayer, of);
  const entropy = statistic("entropy", inLayer, of);
  const chosen = layer.value === inLayer && head.value === of;
  const dim = role.value !== null && !roles.some(({ name }) => name === role.value);
  const said = roles.map((each) => `${each.label} ${score(each, inLayer, of)!.toFixed(2)}`).join(", ");
  return (
    <button class={`card${dim ? " dim" : ""}`} role="gridcell" data-head={`${inLayer}/${of}`} aria-selected={chosen} tabIndex={chosen ? 0 : -1} aria-label={`${headName(inLayer, of)}; ${said || "no labelled role"}; entropy ${entropy?.toFixed(2) ?? "unknown"} nats`} title={`${headName(inLayer, of)}${said && `\n${said}`}\nentropy ${entropy?.toFixed(2) ?? "unknown"} nats`} onClick={() => open(inLayer, of)}>
      {named && <span class="name">{headName(inLayer, of)}</span>}
      <Thumbnail layer={inLayer} head={of} />
      <span class="tags">
        {roles.map((each) => (
          <span key={each.name} class={`tag ${each.name}`}>
            {each.short}
            <b>{score(each, inLayer, of)!.toFixed(2).replace(/^0/, "")}</b>
          </span>
        ))}
      </span>
      <span class="entropy">
        <span class="meter">
          <span style={{ width: `${Math.min(100, ((entropy ?? 0) / Math.log(n)) * 100)}%` }} />
        </span>
        <span class="value">{entropy?.toFixed(2) ?? "–"}</span>
      </span>
    </button>
  );
}

function open(inLayer: number, of: number): void {
  chooseHead(inLayer, of);
  view.value = "map";
}

function arranged(): Place[] {
  const rank = ([inLayer, of]: Place): number => {
    if (order.value === "entropy") return statistic("entropy", inLayer, of) ?? Infinity;
    const wanted = ROLES.find(({ name }) => name === role.value);
    return -(wanted ? score(wanted, inLayer, of) ?? 0 : Math.max(...ROLES.map((each) => score(each, inLayer, of) ?? 0)));
  };
  return order.value === "layer" ? ALL : ALL.toSorted((a, b) => rank(a) - rank(b));
}

function rowsOf(places: Place[], byLayer: boolean): Place[][] {
  return byLayer ? layers.map((_, inLayer) => places.filter(([of]) => of === inLayer)) : [places];
}

/** Arrow keys go to the neighbour on the screen, whatever the order. */
function walk(event: KeyboardEvent, places: Place[], grid: HTMLElement): void {
  const at = places.findIndex(([inLayer, of]) => inLayer === layer.value && of === head.value);
  const columns = order.value === "layer" ? layers[layer.value]!.heads : getComputedStyle(grid.querySelector(".row:last-child")!).gridTemplateColumns.split(" ").length;
  const steps: Record<string, number> = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  const next = places[at + (steps[event.key] ?? NaN)];
  if (!next) return;
  chooseHead(...next);
  event.preventDefault();
  requestAnimationFrame(() => grid.querySelector<HTMLElement>(`[data-head="${next.join("/")}"]`)?.focus());
}
