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

/** Ticks of the map's scale, whose end is `unit`. */
export function logTicks(unit = 1): { at: number; label: string }[] {
  return Array.from({ length: DECADES + 1 }, (_, power) => {
    const value = LOWEST * 10 ** power;
    return { at: power / DECADES, label: unit === 1 ? value.toFixed(DECADES - power) : String(Number((value * unit).toPrecision(2))) };
  });
}

/** Ticks of a difference. */
export function signedTicks(unit = 1): { at: number; label: string }[] {
  const [middle, end] = [Math.sqrt(LOWEST) * unit, unit].map((value) => String(Number(value.toPrecision(value === 1 ? 1 : 2)))) as [string, string];
  return [`−${end}`, `−${middle}`, "0", middle, end].map((label, at) => ({ at: at / 4, label }));
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

/** The step of a difference of weights: the middle is none, the ends are −1 and 1, by the scale of weights. */
export function signedStep(difference: number): number {
  return Math.round(((STEPS - 1) / 2) * (1 + (Math.sign(difference) * logStep(Math.abs(difference))) / (STEPS - 1)));
}

/** Less, none, more. */
const SIGNED: Record<Theme, [string, string, string]> = { light: ["#5b2a91", "#f4f4f1", "#b35806"], dark: ["#b8a5ff", "#1e2126", "#fdb04c"] };
const between = (t: number, [less, none, more]: [string, string, string]): string => {
  const [from, to, by] = t < 0.5 ? [none, less, 1 - 2 * t] : [none, more, 2 * t - 1];
  const [a, b] = [rgb(from), rgb(to)];
  return rgb(a.r + (b.r - a.r) * by, a.g + (b.g - a.g) * by, a.b + (b.b - a.b) * by).formatHex();
};

const ramps = new Map<string, Ramp>();

/** The colours of weights, or of their differences. */
export function ramp(theme: Theme, signed = false): Ramp {
  const name = `${theme} ${signed}`;
  if (!ramps.has(name)) ramps.set(name, build(signed ? (t) => between(t, SIGNED[theme]) : RAMPS[theme]));
  return ramps.get(name)!;
}

function build(colour: (t: number) => string): Ramp {
  const colours = Array.from({ length: STEPS }, (_, step) => rgb(colour(step / (STEPS - 1))));
  return {
    css: colours.map((colour) => colour.formatHex()),
    packed: Uint32Array.from(colours, ({ r, g, b }) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0),
    lightInk: colours.map(({ r, g, b }) => 0.299 * r + 0.587 * g + 0.114 * b < 140),
  };
}
