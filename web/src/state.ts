/** What is chosen: signals that the views follow, kept in the address so that a link or a reload returns to them. */
import { batch, computed, effect, signal } from "@preact/signals";
import { header, layers, lengths, textsOf, type Side } from "./data";
import { GRAINS, type GrainName } from "./grain";
import { MEASURES, type Measure } from "./weights";

export const VIEWS = ["heads", "map", "text", "flow"] as const;
export const MODES = ["attends", "attended", "received", "surprise", "kept"] as const;
export const SPANS = ["head", "layer", "all"] as const;
export const ORDERS = ["layer", "role", "entropy"] as const;
export const PANES = ["other", "difference"] as const;
/** Those that the record has. */
export const OPEN = VIEWS.filter((name) => name !== "flow" || header.record.analyses?.routes?.length);
export type View = (typeof VIEWS)[number];
/** A head, of the page's record or of the one beside it. */
export interface Place {
  layer: number;
  head: number;
  side: Side;
}
/** What the map shows: its middle, and how many times nearer than all of it. */
export interface Window {
  near: number;
  key: number;
  row: number;
}

export const view = signal<View>("heads");
/** Place of the layer among the watched ones; `layers[layer].index` is its name. */
export const layer = signal(0);
export const head = signal(0);
/** The chosen query, and the key pinned with it on the map. */
export const token = signal(lengths[0]! - 1);
export const key = signal<number | null>(null);
export const mode = signal<(typeof MODES)[number]>("attends");
/** Over what the text's shading is averaged. */
export const span = signal<(typeof SPANS)[number]>("head");
export const order = signal<(typeof ORDERS)[number]>("layer");
export const role = signal<string | null>(null);
/** A, or ‖A v‖; of tokens, or of words. */
export const measure = signal<Measure>("weight");
export const grain = signal<GrainName>("tokens");
/** Weights below this are not drawn; 0 draws all that is known. */
export const floor = signal(0);
export const hideSinks = signal(false);
/** Of the flow graph: shares of a state below this are not drawn; null for as many edges as can be read. */
export const least = signal<number | null>(null);
/** A token under the pointer, shown in place of the chosen one while it is there. */
export const preview = signal<number | null>(null);
export const help = signal(false);
/** The name of the score that the matrix of heads shows, and of which record, or the change from the one beside. */
export const matrix = signal("entropy");
export const OF = ["this", "before", "change"] as const;
export const matrixOf = signal<(typeof OF)[number]>("this");
/** The head that the chosen one is compared with, and what is drawn in its pane. */
export const other = signal<Place | null>(null);
export const pane = signal<(typeof PANES)[number]>("other");
/** Whether the next head that is picked is the other. */
export const picking = signal(false);
/** Null for all of the map. */
export const zoomed = signal<Window | null>(null);
export const find = signal("");

export const shown = computed(() => preview.value ?? token.value);

export function chooseHead(newLayer: number, newHead: number): void {
  batch(() => {
    layer.value = clamp(newLayer, layers.length);
    head.value = clamp(newHead, layers[layer.value]!.heads);
    const [rows, keys] = textsOf(layer.value).map((text) => lengths[text]!) as [number, number];
    token.value = clamp(token.value, rows);
    if (key.value !== null) key.value = clamp(key.value, keys);
  });
}

export function chooseToken(newToken: number, newKey: number | null = null): void {
  batch(() => {
    token.value = clamp(newToken, lengths[textsOf(layer.value)[0]]!);
    key.value = newKey;
    preview.value = null;
  });
}

/** The head before or after the chosen one, through all layers. */
export function stepHead(by: number): void {
  const places = layers.flatMap((each, place) => Array.from({ length: each.heads }, (_, of) => [place, of] as const));
  const at = places.findIndex(([place, of]) => place === layer.value && of === head.value);
  const [toLayer, toHead] = places[(at + by + places.length) % places.length]!;
  chooseHead(toLayer, toHead);
}

export const theme = signal<"light" | "dark">(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

export function followSystemTheme(): void {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => (theme.value = event.matches ? "dark" : "light"));
  effect(() => void (document.documentElement.dataset.theme = theme.value));
}

const BURST = 600; // milliseconds between choices that are one step back, such as those of a held arrow key
let [reading, waiting] = [true, 0];

/** A new entry of the browser's history for another view, head or token; the rest of the address follows without one. */
export function followAddress(): void {
  read();
  addEventListener("popstate", read);
  addEventListener("hashchange", read);
  let [stood, since] = ["", 0];
  reading = true;
  effect(() => {
    const hash = address();
    const [now, time] = [placeOf(hash), performance.now()];
    clearTimeout(waiting);
    if (reading || (now !== stood && time - since < BURST && now.split("&")[0] === stood.split("&")[0])) history.replaceState(null, "", hash);
    else if (now !== stood) history.pushState(null, "", hash);
    else waiting = window.setTimeout(() => history.replaceState(null, "", hash), 200);
    if (now !== stood) [stood, since] = [now, reading ? 0 : time];
  });
  reading = false;
}

/** The part of an address that one can go back to, its view first. */
function placeOf(hash: string): string {
  const fields = new URLSearchParams(hash.slice(1));
  return PLACE.map((name) => fields.get(name)).join("&");
}

const PLACE = ["view", "layer", "head", "token", "key", "with", "mode", "over", "order", "role"];

function address(): string {
  const fields: Record<string, string | number> = { view: view.value, layer: layers[layer.value]!.index, head: head.value, token: token.value };
  const optional: [string, string | number | null, string | number | null][] = [
    ["key", key.value, null],
    ["mode", mode.value, "attends"],
    ["over", span.value, "head"],
    ["order", order.value, "layer"],
    ["role", role.value, null],
    ["score", matrix.value, "entropy"],
    ["of", matrixOf.value, "this"],
    ["measure", measure.value, "weight"],
    ["grain", grain.value, "tokens"],
    ["floor", floor.value, 0],
    ["least", least.value, null],
    ["sinks", hideSinks.value ? "hidden" : "", ""],
    ["with", other.value && `${layers[other.value.layer]!.index}.${other.value.head}${other.value.side ? ".before" : ""}`, null],
    ["pane", pane.value, "other"],
    ["zoom", zoomed.value && `${digits(zoomed.value.near)},${digits(zoomed.value.key)},${digits(zoomed.value.row)}`, null],
    ["find", encodeURIComponent(find.value), ""],
  ];
  for (const [name, value, usual] of optional) if (value !== usual && value !== null) fields[name] = value;
  return `#${Object.entries(fields).map(([name, value]) => `${name}=${value}`).join("&")}`;
}

const digits = (value: number): string => String(Number(value.toFixed(2)));

function read(): void {
  const fields = new URLSearchParams(location.hash.slice(1));
  const whole = (name: string): number | null => (/^\d+$/.test(fields.get(name) ?? "") ? Number(fields.get(name)) : null);
  const one = <T extends string>(name: string, among: readonly T[], usual: T): T => among.find((each) => each === fields.get(name)) ?? usual;
  const placed = (index: number | null): number => layers.findIndex((each) => each.index === index);
  clearTimeout(waiting);
  reading = true;
  batch(() => {
    view.value = one("view", OPEN, "heads");
    const at = placed(whole("layer"));
    chooseHead(at < 0 ? layer.value : at, whole("head") ?? head.value);
    const [rows, keys] = textsOf(layer.value).map((text) => lengths[text]!) as [number, number];
    token.value = clamp(whole("token") ?? token.value, rows);
    key.value = whole("key") === null ? null : clamp(whole("key")!, keys);
    mode.value = one("mode", MODES, "attends");
    span.value = one("over", SPANS, "head");
    order.value = one("order", ORDERS, "layer");
    role.value = fields.get("role");
    matrix.value = fields.get("score") ?? "entropy";
    matrixOf.value = one("of", OF, "this");
    measure.value = one("measure", MEASURES, "weight");
    grain.value = one("grain", GRAINS, "tokens");
    floor.value = Math.max(0, Math.min(0.5, Number(fields.get("floor")) || 0));
    least.value = fields.get("least") === null ? null : Math.max(0, Math.min(0.3, Number(fields.get("least")) || 0));
    hideSinks.value = fields.get("sinks") === "hidden";
    const [inLayer, of, side] = (fields.get("with") ?? "").split(".");
    const beside = placed(inLayer && of ? Number(inLayer) : null);
    other.value = beside < 0 ? null : { layer: beside, head: clamp(Number(of) || 0, layers[beside]!.heads), side: side && header.beside ? 1 : 0 };
    pane.value = one("pane", PANES, "other");
    const [near, middle, row] = (fields.get("zoom") ?? "").split(",").map(Number);
    zoomed.value = near! >= 1 && middle! >= 0 && row! >= 0 ? { near: near!, key: middle!, row: row! } : null;
    find.value = fields.get("find") ?? "";
  });
  reading = false;
}

function clamp(value: number, count: number): number {
  return Math.max(0, Math.min(count - 1, value));
}
