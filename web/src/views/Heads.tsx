/** All heads at a glance: maps, roles, entropies. */
import { batch, effect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { layers, n } from "../data";
import { has, measured, ROLES, rolesOf, statistic, strength, type Role } from "../roles";
import { SCORES } from "../scores";
import { chooseHead, head, layer, order, ORDERS, role, view } from "../state";
import { begins, count, headName, mechanismOf, nats } from "../words";
import { Legend } from "./Legend";
import { Matrix, matrixSvg } from "./Matrix";
import { Thumbnail } from "./Thumbnail";
import { useSaved } from "./useSaved";

type Place = readonly [layer: number, head: number];

const ALL: Place[] = layers.flatMap((each, place) => Array.from({ length: each.heads }, (_, of) => [place, of] as const));
const WIDEST = Math.max(...layers.map((each) => each.heads));

const wanted = (): Role | undefined => ROLES.find(({ name }) => name === role.value);

export function Heads() {
  const grid = useRef<HTMLDivElement>(null);
  useSaved({ name: () => "heads", svg: matrixSvg, rows });
  useEffect(() => {
    grid.current!.querySelector<HTMLElement>("[tabindex='0']")?.focus({ preventScroll: true });
    let opened = true; // at its first head the page stays at its top: on a phone that one is below the matrix
    return effect(() => {
      const at = `[data-head="${layer.value}/${head.value}"]`;
      const stay = opened && !layer.value && !head.value;
      opened = false;
      if (!stay) requestAnimationFrame(() => grid.current?.querySelector(at)?.scrollIntoView({ block: "nearest" }));
    });
  }, []);
  const places = arranged();
  const byLayer = order.value === "layer";
  const filter = wanted();
  return (
    <section class="heads" aria-label="all heads">
      <Matrix />
      <div class="cards">
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
              const found = ALL.filter((place) => has(each, ...place));
              return (
                <button key={each.name} class={`chip ${each.name}`} title={each.meaning} disabled={!found.length} aria-pressed={role.value === each.name} onClick={() => choose(each, found)}>
                  {each.label} <span>{found.length}</span>
                </button>
              );
            })}
          </div>
          <Legend />
          <p class="small key">Below a map: its roles with their scores, and its entropy in nats; the bar is its share of the most there can be.</p>
        </div>
        {filter && (
          <p class="filtered" role="status">
            {count(places.length)} of {count(ALL.length)} heads: {filter.label}
            {measured && ", by regard heads"} <button onClick={() => (role.value = null)}>show all</button>
          </p>
        )}
        <div ref={grid} class={byLayer ? "grid by-layer" : "grid"} style={{ "--columns": byLayer ? WIDEST : Math.min(8, WIDEST) }} role="grid" aria-label="heads; arrow keys move, Enter opens the map" onKeyDown={(event) => walk(event, places, grid.current!)}>
          {byLayer && (
            <div class="row columns" aria-hidden="true">
              <span />
              {Array.from({ length: WIDEST }, (_, of) => (
                <span key={of}>{of}</span>
              ))}
            </div>
          )}
          {rowsOf(places, byLayer).map((row) => (
            <div class="row" role="row" key={byLayer ? row[0]![0] : "all"}>
              {byLayer && begins(row[0]![0]) && <span class="stack">{begins(row[0]![0])}</span>}
              {byLayer && (
                <span class="layer" role="rowheader" title={mechanismOf(row[0]![0])}>
                  <span>layer </span>
                  {layers[row[0]![0]]!.index}
                </span>
              )}
              {row.map((place) => (
                <Card key={place.join("/")} place={place} named={!byLayer} column={byLayer ? place[1] + 2 : undefined} />
              ))}
            </div>
          ))}
        </div>
      </div>
    </section>
  );
}

/** Shows the heads of the role alone, or all again; the first of them is chosen, and so comes into view. */
function choose(each: Role, found: Place[]): void {
  role.value = role.value === each.name ? null : each.name;
  if (role.value && !has(each, layer.value, head.value)) chooseHead(...found[0]!);
}

function Card({ place: [inLayer, of], named, column }: { place: Place; named: boolean; column?: number }) {
  const roles = rolesOf(inLayer, of);
  const entropy = statistic("entropy", inLayer, of);
  const told = entropy === null ? "unknown" : nats(entropy);
  const chosen = layer.value === inLayer && head.value === of;
  const said = roles.map((each) => `${each.label} ${strength(each, inLayer, of)!.toFixed(2)}`).join(", ");
  return (
    <button class="card" style={{ gridColumn: column }} role="gridcell" data-head={`${inLayer}/${of}`} aria-selected={chosen} tabIndex={chosen ? 0 : -1} aria-label={`${headName(inLayer, of)}; ${said || "no labelled role"}; entropy ${told} nats`} title={`${headName(inLayer, of)}${said && `\n${said}`}\nentropy ${told} nats`} onClick={() => open(inLayer, of)}>
      {named && <span class="name">{headName(inLayer, of)}</span>}
      <Thumbnail layer={inLayer} head={of} />
      <span class="tags">
        {roles.map((each) => (
          <span key={each.name} class={`tag ${each.name}`}>
            {each.short}
            <b>{strength(each, inLayer, of)!.toFixed(2).replace(/^0/, "")}</b>
          </span>
        ))}
      </span>
      <span class="entropy">
        <span class="meter">
          <span style={{ width: `${Math.max(0, Math.min(100, ((entropy ?? 0) / Math.log(n)) * 100))}%` }} />
        </span>
        <span class="value">{told === "unknown" ? "–" : told}</span>
      </span>
    </button>
  );
}

function open(inLayer: number, of: number): void {
  batch(() => {
    chooseHead(inLayer, of);
    view.value = "map";
  });
}

/** The heads that are shown, in their order. */
function arranged(): Place[] {
  const filter = wanted();
  const rank = ([inLayer, of]: Place): number => {
    if (order.value === "entropy") return statistic("entropy", inLayer, of) ?? Infinity;
    return -(filter ? (strength(filter, inLayer, of) ?? 0) : Math.max(...ROLES.map((each) => strength(each, inLayer, of) ?? 0)));
  };
  const found = filter ? ALL.filter((place) => has(filter, ...place)) : ALL;
  if (order.value === "layer") return found;
  return found.map((place) => [rank(place), place] as const).sort(([a], [b]) => a - b).map(([, place]) => place);
}

function rowsOf(places: Place[], byLayer: boolean): Place[][] {
  return byLayer ? layers.map((_, inLayer) => places.filter(([of]) => of === inLayer)).filter((row) => row.length) : [places];
}

/** A row a head, of those that are shown: everything that the page knows of it. */
function rows(): (string | number | null)[][] {
  const head = ["layer", "head", "roles", ...SCORES.map(({ name }) => name)];
  return [head, ...arranged().map(([inLayer, of]) => [layers[inLayer]!.index, of, rolesOf(inLayer, of).map(({ name }) => name).join(" "), ...SCORES.map((each) => each.of(inLayer, of))])];
}

/** Arrow keys go to the neighbour on the screen, whatever the order and the filter. */
function walk(event: KeyboardEvent, places: Place[], grid: HTMLElement): void {
  const at = places.findIndex(([inLayer, of]) => inLayer === layer.value && of === head.value);
  const next = order.value === "layer" ? besides(event.key, places) : places[at + (stepOf(event.key, grid) ?? NaN)];
  if (!next) return;
  chooseHead(...next);
  event.preventDefault();
  requestAnimationFrame(() => grid.querySelector<HTMLElement>(`[data-head="${next.join("/")}"]`)?.focus());
}

function stepOf(key: string, grid: HTMLElement): number | undefined {
  const columns = getComputedStyle(grid.querySelector(".row:last-child")!).gridTemplateColumns.split(" ").length;
  return { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
}

/** The neighbour in the same layer, or the nearest head of the next layer that has one. */
function besides(key: string, places: Place[]): Place | undefined {
  const [here, column] = [layer.value, head.value];
  const after = ([inLayer, of]: Place): boolean => inLayer > here || (inLayer === here && of > column);
  if (key === "ArrowRight") return places.find(after);
  if (key === "ArrowLeft") return places.findLast((place) => !after(place) && (place[0] !== here || place[1] !== column));
  if (key !== "ArrowDown" && key !== "ArrowUp") return undefined;
  const to = key === "ArrowDown" ? places.find(([of]) => of > here) : places.findLast(([of]) => of < here);
  return to && places.filter(([of]) => of === to[0]).toSorted((a, b) => Math.abs(a[1] - column) - Math.abs(b[1] - column))[0];
}
