/** One scale for weights: logarithmic, from a tenth of the even share up to one, in colours ordered by lightness. */
import { rgb } from "d3-color";
import { interpolateMagma, interpolateYlGnBu } from "d3-scale-chromatic";
import { n } from "./data";

export const STEPS = 256;
export type Theme = "light" | "dark";

/** The decade at which the scale of the map begins. */
export const LOWEST = 10 ** Math.floor(Math.log10(0.3 / n));
const DECADES = -Math.log10(LOWEST);

/** The step of a weight on the map's scale. */
export function logStep(weight: number): number {
  if (!(weight > LOWEST)) return 0;
  return Math.min(STEPS - 1, Math.round((1 + Math.log10(weight) / DECADES) * (STEPS - 1)));
}

/** The step of a weight in the text, where `top` is the strongest. */
export function rootStep(weight: number, top: number): number {
  return weight > 0 ? Math.min(STEPS - 1, Math.round(Math.sqrt(weight / top) * (STEPS - 1))) : 0;
}

export function logTicks(): { at: number; label: string }[] {
  return Array.from({ length: DECADES + 1 }, (_, power) => ({ at: power / DECADES, label: (LOWEST * 10 ** power).toFixed(DECADES - power) }));
}

const RAMPS: Record<Theme, (t: number) => string> = {
  light: (t) => interpolateYlGnBu(t),
  dark: (t) => interpolateMagma(0.1 + 0.9 * t),
};

/** Colours of a theme, by step: as CSS, as little-endian RGBA, and whether ink on them must be the light one. */
export interface Ramp {
  css: string[];
  packed: Uint32Array;
  lightInk: boolean[];
}

const ramps = new Map<Theme, Ramp>();

export function ramp(theme: Theme): Ramp {
  if (!ramps.has(theme)) ramps.set(theme, build(theme));
  return ramps.get(theme)!;
}

function build(theme: Theme): Ramp {
  const colours = Array.from({ length: STEPS }, (_, step) => rgb(RAMPS[theme](step / (STEPS - 1))));
  return {
    css: colours.map((colour) => colour.formatHex()),
    packed: Uint32Array.from(colours, ({ r, g, b }) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0),
    lightInk: colours.map(({ r, g, b }) => 0.299 * r + 0.587 * g + 0.114 * b < 140),
  };
}
