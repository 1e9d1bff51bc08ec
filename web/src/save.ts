/** What a view shows, as files: a picture in pixels or as vectors, and its data as a table; all of it or nothing. */
import { signal } from "@preact/signals";
import { record } from "./data";

export interface Shown {
  name: () => string;
  svg: () => string;
  rows: () => (string | number | null)[][];
  /** What of it is not there yet, in words; nothing where all is. */
  missing?: (format: Format) => string;
}

/** What the view that is open can give; null until there is one. */
export const shown = signal<Shown | null>(null);

export type Format = "PNG" | "SVG" | "CSV";

const MOST = 16_000; // pixels of a side, about what browsers allow

/** Why the format cannot be saved now, in words; nothing where it can. */
export const missing = (format: Format): string => (shown.value ? (shown.value.missing?.(format) ?? "") : "opening the view …");

export async function save(format: Format): Promise<void> {
  const view = shown.value;
  if (!view || missing(format)) return;
  const name = `${record.model.name.replace(/[^\w.-]+/g, "-")}-${view.name()}.${format.toLowerCase()}`;
  if (format === "CSV") return download(name, new Blob([`\ufeff${view.rows().map(line).join("")}`], { type: "text/csv" }));
  const svg = view.svg();
  download(name, format === "SVG" ? new Blob([svg], { type: "image/svg+xml" }) : await pixels(svg));
}

/** One line of a table as RFC 4180 has it. A text that a spreadsheet would run as a formula gets a quote before it. */
function line(cells: (string | number | null)[]): string {
  const written = cells.map((cell) => {
    if (typeof cell !== "string") return cell === null ? "" : String(Number(cell.toPrecision(7)));
    const safe = /^[=+\-@\t\r]/.test(cell) ? `'${cell}` : cell;
    return /[",\r\n]|^\s|\s$/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  });
  return `${written.join(",")}\r\n`;
}

function download(name: string, content: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function pixels(svg: string): Promise<Blob> {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const scale = Math.min(2, MOST / image.width, MOST / image.height);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.round(image.width * scale), Math.round(image.height * scale)];
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done, fail) => canvas.toBlob((made) => (made ? done(made) : fail(new Error("the picture is too large"))), "image/png"));
}

export const escaped = (text: string): string =>
  text.replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]!).replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, "\ufffd");

const MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace";

export interface Written {
  x: number;
  y: number;
  text: string;
  colour: string;
  end?: boolean;
  up?: boolean;
  size?: number;
}

export function svgText({ x, y, text, colour, end, up, size = 11 }: Written): string {
  const turned = up ? ` transform="rotate(-90 ${x} ${y})"` : "";
  return `<text x="${x}" y="${y}" font-size="${size}" fill="${colour}" dominant-baseline="central"${end ? ' text-anchor="end"' : ""}${turned} xml:space="preserve">${escaped(text)}</text>`;
}

export function svgOf(width: number, height: number, paper: string, parts: string[]): string {
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${MONO}"><rect width="100%" height="100%" fill="${paper}"/>${parts.join("")}</svg>`;
}

/** Colours of the page's theme. */
export function inks(): Record<"ink" | "muted" | "paper" | "line" | "unseen" | "pin", string> {
  const style = getComputedStyle(document.documentElement);
  const named = (name: string): string => style.getPropertyValue(`--${name}`).trim();
  return { ink: named("ink"), muted: named("muted"), paper: named("paper"), line: named("line"), unseen: named("unseen"), pin: named("pin") };
}
