/** One head's map with what is under the pointer in words. */
import { effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { TileAtlas } from "../atlas";
import { layers, served, threshold } from "../data";
import { region } from "../exact";
import { chooseToken, floor, head, hideSinks, key, layer, theme, token } from "../state";
import { StreetMap, type Region } from "../streetmap";
import { headMap, meanAround, visiblePairs, type HeadMap } from "../tiles";
import { headName, number, placed, range } from "../words";
import { Legend } from "./Legend";
import { Side } from "./Side";

const pointed = signal<Region | null>(null);
const current = signal<HeadMap | null>(null);
/** The pair's weight from the server, where there is one. */
const exact = signal<{ row: number; key: number; weight: number } | null>(null);

export function MapView() {
  const canvas = useRef<HTMLCanvasElement>(null);
  const map = useRef<StreetMap | null>(null);
  useEffect(() => {
    map.current = new StreetMap(canvas.current!, look, { point: (at) => (pointed.value = at), pick: pin });
    const room = canvas.current!.parentElement!;
    const measure = (): void => map.current!.resize(Math.floor(Math.min(room.clientWidth, Math.max(340, innerHeight - 150))));
    const watcher = new ResizeObserver(measure);
    watcher.observe(room);
    addEventListener("resize", measure);
    const ends = [follow(map.current), effect(() => map.current!.pin(token.value, key.value)), effect(askExact)];
    canvas.current!.focus({ preventScroll: true });
    return () => {
      ends.forEach((end) => end());
      watcher.disconnect();
      removeEventListener("resize", measure);
    };
  }, []);
  return (
    <section class="split map" aria-label="map">
      <div class="stage">
        <Readout />
        <div class="room">
          <canvas ref={canvas} tabIndex={0} role="application" aria-label={`attention map of ${headName(layer.value, head.value)}; arrow keys move among pairs, plus and minus zoom, Enter pins`} aria-describedby="readout" />
        </div>
        <div class="zoom" role="group" aria-label="zoom">
          <button onClick={() => map.current!.zoomBy(1.6)} aria-label="nearer">+</button>
          <button onClick={() => map.current!.zoomBy(1 / 1.6)} aria-label="farther">−</button>
          <button onClick={() => map.current!.whole()}>whole</button>
          <button onClick={() => map.current!.goTo(token.value, key.value ?? token.value)}>to the pin</button>
        </div>
      </div>
      <Side>
        <Legend title="weight, log scale; mean where one pixel is many pairs" />
      </Side>
    </section>
  );
}

/** Keeps the map on the chosen head, options and theme. */
function follow(map: StreetMap): () => void {
  let atlas: TileAtlas | null = null;
  const stop = effect(() => {
    const [inLayer, of, options, colours] = [layer.value, head.value, { floor: floor.value, hideSinks: hideSinks.value }, theme.value];
    atlas?.close();
    void headMap(inLayer, of).then((loaded) => {
      if (inLayer !== layer.peek() || of !== head.peek()) return;
      current.value = loaded;
      atlas = new TileAtlas(loaded, options, colours, () => map.redraw());
      map.show(atlas);
    });
  });
  return () => {
    stop();
    atlas?.close();
  };
}

function pin(row: number, at: number): void {
  chooseToken(row);
  key.value = at;
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
  const map = current.value;
  return (
    <p id="readout" class={pointed.value ? "readout" : "readout pinned"} role="status" aria-live="polite">
      {at && map ? <Said at={at} map={map} /> : `${headName(layer.value, head.value)}: point at the map, or press an arrow key`}
    </p>
  );
}

function Said({ at, map }: { at: Region; map: HeadMap }) {
  const { row0, row1, key0, key1 } = at;
  if (!visiblePairs(map.layer, row0, row1, key0, key1)) return <>query {range(row0, row1)} may not see key {range(key0, key1)}</>;
  if (row1 - row0 === 1 && key1 - key0 === 1) return <Pair row={row0} at={key0} map={map} />;
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

function Pair({ row, at, map }: { row: number; at: number; map: HeadMap }) {
  const known = exact.value?.row === row && exact.value.key === at ? exact.value.weight : map.edges.at(row, at);
  return (
    <>
      query {placed(row)} → key {placed(at)}:{" "}
      {known === null ? (
        <>
          <b>below {threshold}</b> (mean here {number(meanAround(map, row, at))})
        </>
      ) : (
        <b>{number(known)}</b>
      )}
    </>
  );
}

function look() {
  const style = getComputedStyle(document.documentElement);
  const value = (name: string): string => style.getPropertyValue(name).trim();
  return { ink: value("--ink"), faint: value("--muted"), empty: value("--unseen"), accent: value("--pin") };
}
