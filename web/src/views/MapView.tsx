/** One head's map, or two beside each other, with what is under the pointer in words. */
import { computed, effect, signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { TileAtlas } from "../atlas";
import { logTicks, signedTicks } from "../colour";
import { hasValues, layers, otherTokens, served, threshold } from "../data";
import { region } from "../exact";
import { calledRange, called, grainsOf, inRecord, madeOf, sideOf, written } from "../grain";
import { escaped, inks, svgOf, svgText, type Format } from "../save";
import { chooseToken, floor, grain, head, hideSinks, key, layer, measure, other, pane, picking, theme, token, zoomed, type Place } from "../state";
import { StreetMap, type Pair, type Region } from "../streetmap";
import { headMap, meanAround, sight, type HeadMap } from "../tiles";
import { headName, number, placeName } from "../words";
import { Legend } from "./Legend";
import { Side } from "./Side";
import { useSaved } from "./useSaved";

const pointed = signal<Region | null>(null);
const cursor = signal<Pair | null>(null);
/** The pair's weight from the server, where there is one. */
const exact = signal<{ row: number; key: number; weight: number } | null>(null);

const chosen = computed((): Place => ({ layer: layer.value, head: head.value, side: 0 }));
const comparing = computed(() => other.value !== null);
const grains = computed(() => grainsOf(grain.value, layer.value));
/** What is drawn: ‖A v‖ only of layers whose values are known. */
const drawn = computed(() => (hasValues(layer.value) ? measure.value : "weight"));
/** Whose maps the panes are, the chosen head's first. */
const wanted = computed(() => ({ places: [chosen.value, ...(other.value ? [other.value] : [])], what: drawn.value, by: grain.value }));
const loaded = signal<{ of: typeof wanted.value; maps: HeadMap[] } | null>(null);
/** Empty until those that are wanted now are there. */
const maps = computed(() => (loaded.value?.of === wanted.value ? loaded.value.maps : []));
/** Whether a pane has drawn all of what is in sight. */
const whole = [signal(false), signal(false)] as const;
/** What the strongest colour stands for; of values null until they are there. */
const unit = computed(() => (drawn.value === "weight" ? 1 : maps.value.length ? Math.max(...maps.value.map((map) => map.unit)) : null));
/** The chosen pair, in rows and columns of the map. */
const pinned = computed(() => ({ row: grains.value[0].of[token.value]!, key: key.value === null ? null : grains.value[1].of[key.value]! }));

export function MapView() {
  const panes = useRef<(StreetMap | null)[]>([null, null]);
  const each = (what: (map: StreetMap) => void): void => panes.current.forEach((map) => map && what(map));
  useSaved({ name: () => `map-${layers[layer.value]!.index}-${head.value}`, svg: () => panesSvg(panes.current), rows: () => rows(panes.current[0]!), missing });
  useEffect(() => effect(askExact), []);
  useLayoutEffect(() => () => void (picking.value = false), []);
  const blur = ({ currentTarget: stage, relatedTarget: to }: { currentTarget: Element; relatedTarget: EventTarget | null }): void => {
    if (document.hasFocus() && !stage.contains(to as Node | null)) each((map) => map.blur());
  };
  return (
    <section class={`split map${comparing.value ? " two" : ""}`} aria-label="map">
      <div class="stage" onFocusOut={blur}>
        <Readout />
        <div class="panes" key={grain.value}>
          <Pane at={0} panes={panes.current} />
          {comparing.value && <Pane at={1} panes={panes.current} />}
        </div>
        <div class="zoom" role="group" aria-label="zoom">
          <button onClick={() => each((map) => map.zoomBy(1.6))} aria-label="nearer">+</button>
          <button onClick={() => each((map) => map.zoomBy(1 / 1.6))} aria-label="farther">−</button>
          <button onClick={() => (zoomed.value = null)}>whole</button>
          <button onClick={() => panes.current[0]!.goTo(pinned.value.row, pinned.value.key ?? pinned.value.row)}>to the pin</button>
        </div>
      </div>
      <Side>
        <Legend title={legend()} ticks={unit.value === null ? [] : logTicks(unit.value)} />
        {comparing.value && pane.value === "difference" && <Legend title="difference, log scale to both sides" ticks={unit.value === null ? [] : signedTicks(unit.value)} signed />}
      </Side>
    </section>
  );
}

/** What of the maps is not there yet, in words; a table needs no picture. */
function missing(format: Format): string {
  if (!maps.value.length) return unpacking();
  return format === "CSV" || maps.value.every((_, at) => whole[at]!.value) ? "" : "drawing the map …";
}

const unpacking = (): string => `unpacking ${wanted.value.places.map(placeName).join(" and ")} …`;

function legend(): string {
  const what = drawn.value === "value" ? "‖A v‖, the length of the weighted value" : "weight";
  if (grain.value === "words") return `${what} between words: sum over keys, mean over queries; log scale; below ${threshold} counts as 0`;
  return `${what}, log scale; mean where one pixel is many pairs`;
}

/** One of the maps: the chosen head's, or the one that it is compared with. */
function Pane({ at, panes }: { at: 0 | 1; panes: (StreetMap | null)[] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useLayoutEffect(() => {
    const place = (): Place => (at && pane.peek() === "other" ? other.peek()! : chosen.peek());
    const axis = (which: "row" | "key") => inRecord(place().side, grainsOf(grain.peek(), place().layer)[which === "row" ? 0 : 1]);
    const label = (which: "row" | "key", at: number): string => (at < axis(which).n ? written(axis(which), at) : "");
    const stands = (which: "row" | "key", at: number): number => axis(which).starts[Math.min(at, axis(which).n)]!;
    const axes = { n: sideOf(grain.peek()), label, place: stands, made: (which: "row" | "key") => madeOf(axis(which)) };
    const map = new StreetMap(canvas.current!, axes, look, {
      point: (region, pair) => [pointed.value, cursor.value] = [region, pair],
      pick: (row, at) => row < axis("row").n && at < axis("key").n && chooseToken(axis("row").starts[row]!, axis("key").starts[at]!),
      move: (window) => (zoomed.value = window),
      drew: (all) => (whole[at].value = all),
    });
    panes[at] = map;
    const room = canvas.current!.parentElement!;
    const measure = (): void => map.resize(Math.floor(Math.min(room.clientWidth, Math.max(340, innerHeight - 150))), zoomed.peek());
    const watcher = new ResizeObserver(measure);
    watcher.observe(room);
    addEventListener("resize", measure);
    measure();
    const ends = [
      follow(map, at),
      effect(() => map.pin(pinned.value.row, pinned.value.key)),
      effect(() => map.follow(cursor.value)),
      effect(() => {
        const window = zoomed.value;
        if (JSON.stringify(window) !== JSON.stringify(map.window)) map.place(window);
      }),
    ];
    if (!at) canvas.current!.focus({ preventScroll: true });
    return () => {
      panes[at] = null;
      [whole[at].value, pointed.value, cursor.value] = [false, null, null];
      ends.forEach((end) => end());
      watcher.disconnect();
      removeEventListener("resize", measure);
    };
  }, []);
  const name = at ? placeName(other.value!) : headName(layer.value, head.value);
  const said = paneName(at);
  return (
    <div class="room" aria-busy={!maps.value.length}>
      {comparing.value && <h2 title={said}>{said}</h2>}
      <canvas ref={canvas} tabIndex={0} role="application" aria-label={`attention map of ${name}; arrow keys move among pairs, plus and minus zoom, Enter pins`} aria-describedby="readout" />
    </div>
  );
}

/** Keeps a pane on its head, options and theme. */
function follow(map: StreetMap, at: 0 | 1): () => void {
  return effect(() => {
    const [asked, options, colours] = [wanted.value, { floor: floor.value, hideSinks: hideSinks.value }, theme.value];
    const difference = at === 1 && pane.value === "difference";
    if (at >= asked.places.length) return;
    let atlas: TileAtlas | null = null;
    let passed = false;
    const load = ({ layer: inLayer, head: of, side }: Place): Promise<HeadMap> => headMap(inLayer, of, side, hasValues(inLayer, side) ? asked.what : "weight", asked.by);
    void Promise.all(asked.places.map(load)).then((found) => {
      if (passed) return;
      loaded.value = { of: asked, maps: found };
      atlas = new TileAtlas(found[difference ? 0 : at]!, options, colours, () => map.redraw(), difference ? found[1]! : null);
      map.show(atlas);
    });
    return () => {
      passed = true;
      atlas?.close();
    };
  });
}

/** The pair in question: under the pointer, else the pinned one. */
function asked(): Region | null {
  const { row, key: at } = pinned.value;
  return pointed.value ?? (at === null ? null : { row0: row, row1: row + 1, key0: at, key1: at + 1 });
}

function askExact(): (() => void) | undefined {
  const at = asked();
  const [inLayer, of, values] = [layer.value, head.value, drawn.value === "value"];
  exact.value = null;
  if (!served || !at || at.row1 - at.row0 > 1 || grain.value === "words") return undefined;
  let passed = false;
  const timer = setTimeout(() => {
    void region(layers[inLayer]!.index, of, [at.row0, at.row1], [at.key0, at.key1], 1, values).then(([weight]) => {
      if (weight !== undefined && !passed) exact.value = { row: at.row0, key: at.key0, weight };
    });
  }, 40);
  return () => {
    passed = true;
    clearTimeout(timer);
  };
}

function Readout() {
  const at = asked();
  return (
    <p id="readout" class={pointed.value ? "readout" : "readout pinned"} role="status" aria-live="polite">
      {!at ? `${headName(layer.value, head.value)}: point at the map, or press an arrow key` : maps.value.length ? <Said at={at} known={maps.value} /> : unpacking()}
    </p>
  );
}

function Said({ at, known }: { at: Region; known: HeadMap[] }) {
  const { row0, row1, key0, key1 } = at;
  const map = known[0]!;
  const [rows, keys] = grainsOf(map.grain, map.layer);
  if (row0 >= rows.n || key0 >= keys.n) return <>the text is shorter</>;
  const [queries, answers] = [calledRange(rows, row0, row1), calledRange(keys, key0, key1)];
  if (!sight(map)(Math.min(row1, rows.n) - 1, key0)) return <>query {queries} may not see key {answers}</>;
  if (row1 - row0 === 1 && key1 - key0 === 1) return <OnePair row={row0} at={key0} known={known} />;
  const best = map.edges.strongest(row0, row1, key0, key1);
  return (
    <>
      queries {queries} → keys {answers}:{" "}
      {best ? (
        <>
          strongest {called(rows, best.row)} → {called(keys, best.key)}: <b>{number(best.weight)}</b>
        </>
      ) : (
        `all below ${threshold}${map.grain === "tokens" ? ` (mean here ${number(meanAround(map, row0, key0))})` : ""}`
      )}
    </>
  );
}

/** Weights that the page has not, by their upper bound. */
function Below({ map, row, at }: { map: HeadMap; row: number; at: number }) {
  if (map.grain === "words") return <b>all of its weights are below {threshold}</b>;
  const bound = map.lengths ? number(threshold * map.lengths[at]!) : threshold;
  return (
    <>
      <b>below {bound}</b> (mean of such weights here {number(meanAround(map, row, at))})
    </>
  );
}

function OnePair({ row, at, known: [map, beside] }: { row: number; at: number; known: HeadMap[] }) {
  const weight = exact.value?.row === row && exact.value.key === at ? exact.value.weight : map!.edges.at(row, at);
  const theirs = beside?.edges.at(row, at) ?? null;
  const [rows, keys] = grainsOf(map!.grain, map!.layer);
  return (
    <>
      query {called(rows, row)} → key {called(keys, at)}: {map!.lengths && "‖A v‖ "}
      {weight === null ? <Below map={map!} row={row} at={at} /> : <b>{number(weight)}</b>}
      {map!.lengths && map!.grain === "tokens" && ` · ‖v‖ of the key ${number(map!.lengths[at]!)}`}
      {beside && (
        <>
          {" "}· beside it{beside.side > 0 && otherTokens.length > 0 && `, of ${called(inRecord(1, rows), row)} → ${called(inRecord(1, keys), at)},`} <b>{theirs === null ? "below its threshold" : number(theirs)}</b>
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

/** The maps as they are on the screen, beside each other. */
function panesSvg(panes: (StreetMap | null)[]): string {
  const drawn = panes.flatMap((map, at) => (map ? [mapParts(map, paneName(at))] : []));
  const wide = drawn.map(({ size }) => size + 12);
  const parts = drawn.map(({ parts }, at) => `<g transform="translate(${wide.slice(0, at).reduce((sum, each) => sum + each, 0)} 0)">${parts.join("")}</g>`);
  return svgOf(wide.reduce((sum, each) => sum + each, 0), Math.max(...drawn.map(({ size }) => size)) + 32, inks().paper, parts);
}

/** What stands above a pane. */
function paneName(at: number): string {
  const mine = headName(layer.value, head.value);
  if (!at) return mine;
  return pane.value === "difference" ? `${mine} − ${placeName(other.value!)}` : placeName(other.value!);
}

function mapParts(map: StreetMap, name: string): { size: number; parts: string[] } {
  const { image, size, gutter, labels } = map.drawn();
  const { ink, muted } = inks();
  const side = size - gutter;
  const parts = labels.map(({ axis, text, at }) => (axis === "row" ? svgText({ x: gutter - 5, y: at + 20, text, colour: muted, end: true }) : svgText({ x: at, y: gutter + 15, text, colour: muted, up: true })));
  parts.push(`<image x="${gutter}" y="${gutter + 20}" width="${side}" height="${side}" href="${escaped(image)}" style="image-rendering:pixelated"/>`);
  parts.push(svgText({ x: 8, y: 14, text: `${name}: queries down, keys across`, colour: ink, size: 13 }));
  return { size, parts };
}

/** The weights from the threshold up in the part of the map that is on the screen. */
function rows(map: StreetMap): (string | number | null)[][] {
  const [{ row0, row1, key0, key1 }, [one, two]] = [map.region, maps.value];
  const [queries, keys] = grains.value;
  const name = one!.lengths ? "weighted_value_norm" : "weight";
  const found: (string | number | null)[][] = [["query", "query_text", "key", "key_text", name, ...(two ? [`${name}_beside`] : [])]];
  for (let row = row0; row < row1; row++) {
    const weights = new Map(one!.edges.row(row).map(({ token: at, weight }) => [at, [weight] as (number | null)[]]));
    if (two) for (const { token: at, weight } of two.edges.row(row)) weights.set(at, [weights.get(at)?.[0] ?? null, weight]);
    for (const [at, values] of [...weights].sort(([a], [b]) => a - b)) if (at >= key0 && at < key1) found.push([queries.starts[row]!, written(queries, row), keys.starts[at]!, written(keys, at), values[0] ?? null, ...(two ? [values[1] ?? null] : [])]);
  }
  return found;
}

function look() {
  const style = getComputedStyle(document.documentElement);
  const value = (name: string): string => style.getPropertyValue(name).trim();
  return { ink: value("--ink"), faint: value("--muted"), empty: value("--unseen"), accent: value("--pin") };
}
