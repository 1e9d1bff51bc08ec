/** One head's map, or two beside each other, with what is under the pointer in words. */
import { computed, effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { TileAtlas } from "../atlas";
import { visiblePairs } from "../cells";
import { signedTicks } from "../colour";
import { layers, served, threshold } from "../data";
import { region } from "../exact";
import { escaped, inks, shown as saved, svgOf, svgText } from "../save";
import { chooseToken, floor, head, hideSinks, key, layer, other, pane, theme, token, zoomed, type Place } from "../state";
import { StreetMap, type Pair, type Region } from "../streetmap";
import { headMap, meanAround, type HeadMap } from "../tiles";
import { glyphs, headName, number, placed, placeName, range } from "../words";
import { Legend } from "./Legend";
import { Side } from "./Side";

const pointed = signal<Region | null>(null);
const cursor = signal<Pair | null>(null);
/** The maps of the panes, the chosen head's first. */
const maps = signal<HeadMap[]>([]);
/** The pair's weight from the server, where there is one. */
const exact = signal<{ row: number; key: number; weight: number } | null>(null);

const chosen = computed((): Place => ({ layer: layer.value, head: head.value, side: 0 }));
const comparing = computed(() => other.value !== null);

export function MapView() {
  const panes = useRef<(StreetMap | null)[]>([null, null]);
  const each = (what: (map: StreetMap) => void): void => panes.current.forEach((map) => map && what(map));
  useEffect(() => {
    saved.value = { name: `map-${layers[layer.value]!.index}-${head.value}`, svg: () => mapSvg(panes.current[0]!), rows: () => rows(panes.current[0]!) };
    return effect(askExact);
  }, []);
  return (
    <section class={`split map${comparing.value ? " two" : ""}`} aria-label="map">
      <div class="stage">
        <Readout />
        <div class="panes">
          <Pane at={0} panes={panes.current} />
          {comparing.value && <Pane at={1} panes={panes.current} />}
        </div>
        <div class="zoom" role="group" aria-label="zoom">
          <button onClick={() => each((map) => map.zoomBy(1.6))} aria-label="nearer">+</button>
          <button onClick={() => each((map) => map.zoomBy(1 / 1.6))} aria-label="farther">−</button>
          <button onClick={() => (zoomed.value = null)}>whole</button>
          <button onClick={() => panes.current[0]!.goTo(token.value, key.value ?? token.value)}>to the pin</button>
        </div>
      </div>
      <Side>
        <Legend title="weight, log scale; mean where one pixel is many pairs" />
        {comparing.value && pane.value === "difference" && <Legend title="difference, log scale to both sides" ticks={signedTicks()} signed />}
      </Side>
    </section>
  );
}

/** One of the maps: the chosen head's, or the one that it is compared with. */
function Pane({ at, panes }: { at: 0 | 1; panes: (StreetMap | null)[] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const map = new StreetMap(canvas.current!, look, {
      point: (region, pair) => [pointed.value, cursor.value] = [region, pair],
      pick: (row, at) => chooseToken(row, at),
      move: (window) => (zoomed.value = window),
    });
    panes[at] = map;
    const room = canvas.current!.parentElement!;
    const measure = (): void => map.resize(Math.floor(Math.min(room.clientWidth, Math.max(340, innerHeight - 150))), zoomed.peek());
    const watcher = new ResizeObserver(measure);
    watcher.observe(room);
    addEventListener("resize", measure);
    const ends = [
      follow(map, at),
      effect(() => map.pin(token.value, key.value)),
      effect(() => map.follow(cursor.value)),
      effect(() => {
        const window = zoomed.value;
        if (JSON.stringify(window) !== JSON.stringify(map.window)) map.place(window);
      }),
    ];
    if (!at) canvas.current!.focus({ preventScroll: true });
    return () => {
      panes[at] = null;
      ends.forEach((end) => end());
      watcher.disconnect();
      removeEventListener("resize", measure);
    };
  }, []);
  const name = at ? placeName(other.value!) : headName(layer.value, head.value);
  return (
    <div class="room">
      {comparing.value && <h2>{at && pane.value === "difference" ? `${headName(layer.value, head.value)} − ${name}` : name}</h2>}
      <canvas ref={canvas} tabIndex={0} role="application" aria-label={`attention map of ${name}; arrow keys move among pairs, plus and minus zoom, Enter pins`} aria-describedby="readout" />
    </div>
  );
}

/** Keeps a pane on its head, options and theme. */
function follow(map: StreetMap, at: 0 | 1): () => void {
  let atlas: TileAtlas | null = null;
  const stop = effect(() => {
    const [one, two, options, colours] = [chosen.value, other.value, { floor: floor.value, hideSinks: hideSinks.value }, theme.value];
    const [difference, wanted] = [at === 1 && pane.value === "difference", at ? two : one];
    const places = [one, ...(two ? [two] : [])];
    if (!wanted) return;
    atlas?.close();
    void Promise.all(places.map((place) => headMap(place.layer, place.head, place.side))).then((loaded) => {
      if (one !== chosen.peek() || two !== other.peek()) return;
      maps.value = loaded;
      atlas = new TileAtlas(loaded[difference ? 0 : at]!, options, colours, () => map.redraw(), difference ? loaded[1]! : null);
      map.show(atlas);
    });
  });
  return () => {
    stop();
    atlas?.close();
  };
}

/** The pair in question: under the pointer, else the pinned one. */
function asked(): Region | null {
  const at = key.value;
  return pointed.value ?? (at === null ? null : { row0: token.value, row1: token.value + 1, key0: at, key1: at + 1 });
}

function askExact(): void {
  const at = asked();
  const [inLayer, of] = [layer.value, head.value];
  exact.value = null;
  if (!served || !at || at.row1 - at.row0 > 1) return;
  setTimeout(() => {
    if (asked()?.row0 !== at.row0 || asked()?.key0 !== at.key0) return;
    void region(layers[inLayer]!.index, of, [at.row0, at.row1], [at.key0, at.key1]).then(([weight]) => {
      if (weight !== undefined && asked()?.row0 === at.row0 && asked()?.key0 === at.key0) exact.value = { row: at.row0, key: at.key0, weight };
    });
  }, 40);
}

function Readout() {
  const at = asked();
  const known = maps.value;
  return (
    <p id="readout" class={pointed.value ? "readout" : "readout pinned"} role="status" aria-live="polite">
      {at && known[0] ? <Said at={at} known={known} /> : `${headName(layer.value, head.value)}: point at the map, or press an arrow key`}
    </p>
  );
}

function Said({ at, known }: { at: Region; known: HeadMap[] }) {
  const { row0, row1, key0, key1 } = at;
  const map = known[0]!;
  if (!visiblePairs(map.layer, row0, row1, key0, key1)) return <>query {range(row0, row1)} may not see key {range(key0, key1)}</>;
  if (row1 - row0 === 1 && key1 - key0 === 1) return <OnePair row={row0} at={key0} known={known} />;
  const best = map.edges.strongest(row0, row1, key0, key1);
  return (
    <>
      queries {range(row0, row1)} → keys {range(key0, key1)}:{" "}
      {best ? (
        <>
          strongest {placed(best.row)} → {placed(best.key)}: <b>{number(best.weight)}</b>
        </>
      ) : (
        `all below ${threshold} (mean here ${number(meanAround(map, row0, key0))})`
      )}
    </>
  );
}

function OnePair({ row, at, known: [map, beside] }: { row: number; at: number; known: HeadMap[] }) {
  const weight = exact.value?.row === row && exact.value.key === at ? exact.value.weight : map!.edges.at(row, at);
  const theirs = beside?.edges.at(row, at) ?? null;
  return (
    <>
      query {placed(row)} → key {placed(at)}:{" "}
      {weight === null ? (
        <>
          <b>below {threshold}</b> (mean of such weights here {number(meanAround(map!, row, at))})
        </>
      ) : (
        <b>{number(weight)}</b>
      )}
      {beside && (
        <>
          {" "}· beside it <b>{theirs === null ? "below its threshold" : number(theirs)}</b>
          {weight !== null && theirs !== null && (
            <>
              {" "}· difference <b>{weight < theirs ? "−" : "+"}{number(Math.abs(weight - theirs))}</b>
            </>
          )}
        </>
      )}
    </>
  );
}

/** The chosen head's map as it is on the screen. */
function mapSvg(map: StreetMap): string {
  const { image, size, gutter, labels } = map.drawn();
  const { ink, muted, paper } = inks();
  const side = size - gutter;
  const parts = labels.map(({ axis, text, at }) => (axis === "row" ? svgText({ x: gutter - 5, y: at + 20, text, colour: muted, end: true }) : svgText({ x: at, y: gutter + 15, text, colour: muted, up: true })));
  parts.push(`<image x="${gutter}" y="${gutter + 20}" width="${side}" height="${side}" href="${escaped(image)}" style="image-rendering:pixelated"/>`);
  parts.push(svgText({ x: 8, y: 14, text: `${headName(layer.value, head.value)}: queries down, keys across`, colour: ink, size: 13 }));
  return svgOf(size + 12, size + 32, paper, parts);
}

/** The weights from the threshold up in the part of the map that is on the screen. */
function rows(map: StreetMap): (string | number | null)[][] {
  const [{ row0, row1, key0, key1 }, [one, two]] = [map.region, maps.value];
  const found: (string | number | null)[][] = [["query", "query_text", "key", "key_text", "weight", ...(two ? ["weight_beside"] : [])]];
  for (let row = row0; row < row1; row++) {
    const weights = new Map(one!.edges.row(row).map(({ token: at, weight }) => [at, [weight] as (number | null)[]]));
    if (two) for (const { token: at, weight } of two.edges.row(row)) weights.set(at, [weights.get(at)?.[0] ?? null, weight]);
    for (const [at, values] of [...weights].sort(([a], [b]) => a - b)) if (at >= key0 && at < key1) found.push([row, glyphs(row), at, glyphs(at), values[0] ?? null, ...(two ? [values[1] ?? null] : [])]);
  }
  return found;
}

function look() {
  const style = getComputedStyle(document.documentElement);
  const value = (name: string): string => style.getPropertyValue(name).trim();
  return { ink: value("--ink"), faint: value("--muted"), empty: value("--unseen"), accent: value("--pin") };
}
