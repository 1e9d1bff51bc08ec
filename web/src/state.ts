/** What is chosen: signals that the views follow, kept in the address so that a link or a reload returns to them. */
import { computed, effect, signal } from "@preact/signals";
import { layers, n } from "./data";

export const VIEWS = ["heads", "map", "text"] as const;
export const MODES = ["attends", "attended", "received"] as const;
export const SPANS = ["head", "layer", "all"] as const;
export const ORDERS = ["layer", "role", "entropy"] as const;
export type View = (typeof VIEWS)[number];

export const view = signal<View>("heads");
/** Place of the layer among the watched ones; `layers[layer].index` is its name. */
export const layer = signal(0);
export const head = signal(0);
/** The chosen query, and the key pinned with it on the map. */
export const token = signal(n - 1);
export const key = signal<number | null>(null);
export const mode = signal<(typeof MODES)[number]>("attends");
/** Over what the text's shading is averaged. */
export const span = signal<(typeof SPANS)[number]>("head");
export const order = signal<(typeof ORDERS)[number]>("layer");
export const role = signal<string | null>(null);
/** Weights below this are not drawn; 0 draws all that is known. */
export const floor = signal(0);
export const hideSinks = signal(false);
/** A token under the pointer, shown in place of the chosen one while it is there. */
export const preview = signal<number | null>(null);
export const help = signal(false);

export const shown = computed(() => preview.value ?? token.value);

export function chooseHead(newLayer: number, newHead: number): void {
  layer.value = clamp(newLayer, layers.length);
  head.value = clamp(newHead, layers[layer.value]!.heads);
}

export function chooseToken(newToken: number): void {
  token.value = clamp(newToken, n);
  key.value = null;
  preview.value = null;
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

export function followAddress(): void {
  read();
  addEventListener("hashchange", read);
  effect(() => {
    const fields: Record<string, string | number> = { view: view.value, layer: layers[layer.value]!.index, head: head.value, token: token.value };
    if (key.value !== null) fields.key = key.value;
    if (mode.value !== "attends") fields.mode = mode.value;
    if (span.value !== "head") fields.over = span.value;
    const hash = `#${Object.entries(fields).map(([name, value]) => `${name}=${value}`).join("&")}`;
    if (hash !== location.hash) history.replaceState(null, "", hash);
  });
}

function read(): void {
  const fields = new URLSearchParams(location.hash.slice(1));
  const whole = (name: string): number | null => (/^\d+$/.test(fields.get(name) ?? "") ? Number(fields.get(name)) : null);
  const one = <T extends string>(name: string, among: readonly T[]): T | undefined => among.find((each) => each === fields.get(name));
  const place = layers.findIndex((each) => each.index === whole("layer"));
  view.value = one("view", VIEWS) ?? "heads";
  chooseHead(place < 0 ? layer.value : place, whole("head") ?? head.value);
  token.value = clamp(whole("token") ?? token.value, n);
  key.value = whole("key") === null ? null : clamp(whole("key")!, n);
  mode.value = one("mode", MODES) ?? "attends";
  span.value = one("over", SPANS) ?? "head";
}

function clamp(value: number, count: number): number {
  return Math.max(0, Math.min(count - 1, value));
}
