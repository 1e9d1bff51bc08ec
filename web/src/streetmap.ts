/** The zoomable map on its canvas: queries run down, keys run right, tokens stand along both. */
import { select } from "d3-selection";
import { zoom, zoomIdentity, type D3ZoomEvent, type ZoomTransform } from "d3-zoom";
import { TileAtlas } from "./atlas";
import type { Window } from "./state";
import { SIDE, topLevel } from "./tiles";

const NEAREST = 44; // pixels of a token at the deepest zoom
const PATIENCE = 9; // milliseconds of tile drawing in one frame
const LETTERS = 11; // pixels of a token from which every one is written

export interface Region {
  row0: number;
  row1: number;
  key0: number;
  key1: number;
}

export interface Pair {
  row: number;
  key: number;
}

export interface Label {
  axis: "row" | "key";
  token: number;
  text: string;
  at: number;
}

/** What stands along the axes. */
export interface Axes {
  /** Of either axis; a text may be shorter. */
  n: number;
  label: (axis: "row" | "key", at: number) => string;
  /** Where in the text it stands. */
  place: (axis: "row" | "key", at: number) => number;
  /** Which part of the text the model wrote itself. */
  made: (axis: "row" | "key") => [first: number, end: number];
}

export interface Look {
  ink: string;
  faint: string;
  empty: string;
  accent: string;
}

export class StreetMap {
  private readonly context: CanvasRenderingContext2D;
  private readonly behaviour = zoom<HTMLCanvasElement, unknown>();
  private transform: ZoomTransform = zoomIdentity;
  private size = 0;
  private gutter = 0;
  private frame = 0;
  private atlas: TileAtlas | null = null;
  private cursor: Pair | null = null;
  private byKeys = false;
  private placing = false;
  private pinned: { row: number; key: number | null } = { row: 0, key: null };

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly axes: Axes,
    private readonly look: () => Look,
    private readonly on: {
      point: (region: Region | null, pair: Pair | null) => void;
      pick: (row: number, key: number) => void;
      move: (window: Window | null) => void;
      /** Told whether all that is in sight is drawn, and as exactly as it will be. */
      drew: (all: boolean) => void;
    },
  ) {
    this.context = canvas.getContext("2d")!;
    this.behaviour.on("zoom", (event: D3ZoomEvent<HTMLCanvasElement, unknown>) => {
      this.transform = event.transform;
      this.on.drew(false);
      if (!this.placing) this.on.move(this.window);
      this.redraw();
    });
    select(canvas).call(this.behaviour).on("dblclick.zoom", null);
    canvas.addEventListener("pointermove", (event) => this.point(this.pairAt(event)));
    canvas.addEventListener("pointerleave", () => this.point(null));
    canvas.addEventListener("click", (event) => {
      const pair = this.pairAt(event);
      if (pair) this.on.pick(pair.row, pair.key);
    });
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  show(atlas: TileAtlas): void {
    this.atlas = atlas;
    this.on.drew(false);
    this.redraw();
  }

  pin(row: number, key: number | null): void {
    this.pinned = { row, key };
    this.redraw();
  }

  /** Takes another size, and keeps its place. */
  resize(size: number, place: Window | null): void {
    const ratio = devicePixelRatio || 1;
    this.size = size;
    this.gutter = size < 480 ? 64 : 96;
    this.canvas.width = this.canvas.height = Math.round(size * ratio);
    this.canvas.style.width = this.canvas.style.height = `${size}px`;
    const extent: [[number, number], [number, number]] = [[this.gutter, this.gutter], [size, size]];
    this.behaviour.extent(extent).translateExtent(extent).scaleExtent([1, Math.max(1, NEAREST / this.fit)]);
    this.place(place);
  }

  /** The middle of what is seen, and how near; null for all. */
  get window(): Window | null {
    const [x, y] = this.transform.invert([(this.gutter + this.size) / 2, (this.gutter + this.size) / 2]);
    return this.transform.k > 1 ? { near: this.transform.k, key: (x - this.gutter) / this.fit, row: (y - this.gutter) / this.fit } : null;
  }

  /** Goes to a place without telling of it. */
  place(window: Window | null): void {
    if (!this.size) return;
    this.placing = true;
    const canvas = select(this.canvas);
    canvas.call(this.behaviour.transform, zoomIdentity);
    if (window) {
      canvas.call(this.behaviour.scaleTo, window.near);
      canvas.call(this.behaviour.translateTo, this.gutter + window.key * this.fit, this.gutter + window.row * this.fit);
    }
    this.placing = false;
    this.redraw();
  }

  /** What can be seen: first row, end of rows, first key, end of keys. */
  get region(): Region {
    const [key0, row0, key1, row1] = this.inView();
    return { row0, row1, key0, key1 };
  }

  /** What is drawn now: the part inside the axes as a picture, and what stands along them. */
  drawn(): { image: string; size: number; gutter: number; labels: Label[] } {
    this.draw();
    const { size, gutter, canvas } = this;
    const ratio = canvas.width / size;
    const inside = document.createElement("canvas");
    inside.width = inside.height = Math.round((size - gutter) * ratio);
    inside.getContext("2d")!.drawImage(canvas, -gutter * ratio, -gutter * ratio);
    return { image: inside.toDataURL(), size, gutter, labels: this.labels() };
  }

  redraw(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  zoomBy(factor: number): void {
    const centre = this.cursor ? this.toScreen(this.cursor.key + 0.5, this.cursor.row + 0.5) : undefined;
    select(this.canvas).call(this.behaviour.scaleBy, factor, centre);
  }

  whole(): void {
    select(this.canvas).call(this.behaviour.transform, zoomIdentity);
  }

  /** Moves to the pair, near enough that tokens can be read, from which arrow keys go on. */
  goTo(row: number, key: number): void {
    const scale = Math.max(this.transform.k, Math.min(NEAREST, 18) / this.fit);
    select(this.canvas).call(this.behaviour.scaleTo, scale);
    select(this.canvas).call(this.behaviour.translateTo, this.gutter + (key + 0.5) * this.fit, this.gutter + (row + 0.5) * this.fit);
    this.canvas.focus({ preventScroll: true });
    this.point({ row, key }, true);
  }

  /** Pixels of a token when all of the map is seen. */
  private get fit(): number {
    return (this.size - this.gutter) / this.axes.n;
  }

  private get scale(): number {
    return this.fit * this.transform.k;
  }

  private toScreen(key: number, row: number): [number, number] {
    return this.transform.apply([this.gutter + key * this.fit, this.gutter + row * this.fit]);
  }

  private pairAt(event: MouseEvent): Pair | null {
    if (event.offsetX < this.gutter || event.offsetY < this.gutter) return null;
    const [x, y] = this.transform.invert([event.offsetX, event.offsetY]);
    const [key, row] = [Math.floor((x - this.gutter) / this.fit), Math.floor((y - this.gutter) / this.fit)];
    return row >= 0 && key >= 0 && row < this.axes.n && key < this.axes.n ? { row, key } : null;
  }

  /** Keys point at nothing any more: the focus has left. */
  blur(): void {
    if (this.byKeys) this.point(null);
  }

  private point(cursor: Pair | null, byKeys = false): void {
    [this.cursor, this.byKeys] = [cursor, byKeys];
    this.on.point(cursor && this.regionAt(cursor), cursor);
    this.redraw();
  }

  /** Marks the pair that is pointed at on another map. */
  follow(cursor: Pair | null): void {
    if (cursor !== this.cursor) this.byKeys = false;
    this.cursor = cursor;
    this.redraw();
  }

  /** The tokens under three pixels around a pair: one pair where single ones can be seen. */
  private regionAt({ row, key }: Pair): Region {
    const reach = this.scale >= 3 ? 0 : Math.ceil(1.5 / this.scale);
    return { row0: Math.max(0, row - reach), row1: Math.min(this.axes.n, row + reach + 1), key0: Math.max(0, key - reach), key1: Math.min(this.axes.n, key + reach + 1) };
  }

  private press(event: KeyboardEvent): void {
    const arrows: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const arrow = arrows[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrow && event.shiftKey) select(this.canvas).call(this.behaviour.translateBy, (-arrow[1] * 60) / this.transform.k, (-arrow[0] * 60) / this.transform.k);
    else if (arrow) this.step(arrow);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.6);
    else if (event.key === "-") this.zoomBy(1 / 1.6);
    else if (event.key === "0") this.whole();
    else if (event.key === "Enter" && this.cursor) this.on.pick(this.cursor.row, this.cursor.key);
    else return;
    event.preventDefault();
  }

  private step([rows, keys]: [number, number]): void {
    const by = Math.max(1, Math.round(6 / this.scale));
    const from = this.cursor ?? { row: this.pinned.row, key: this.pinned.key ?? this.pinned.row };
    const limit = (value: number): number => Math.max(0, Math.min(this.axes.n - 1, value));
    const cursor = { row: limit(from.row + rows * by), key: limit(from.key + keys * by) };
    const [x, y] = this.toScreen(cursor.key + 0.5, cursor.row + 0.5);
    const inside = [x, y].every((at) => at > this.gutter && at < this.size);
    if (!inside) select(this.canvas).call(this.behaviour.translateTo, this.gutter + cursor.key * this.fit, this.gutter + cursor.row * this.fit);
    this.point(cursor, true);
  }

  private draw(): void {
    if (!this.size) return;
    const { context, gutter, size } = this;
    const look = this.look();
    const ratio = this.canvas.width / size;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, size, size);
    context.save();
    context.beginPath();
    context.rect(gutter, gutter, size - gutter, size - gutter);
    context.clip();
    context.fillStyle = look.empty;
    context.fillRect(gutter, gutter, size, size);
    const all = this.atlas !== null && this.drawTiles(this.atlas, ratio);
    if (this.scale >= 14) this.drawGrid(look);
    this.drawMarks(look);
    context.restore();
    this.drawAxes(look);
    this.on.drew(all);
  }

  /** Whether none of the tiles in sight is late. */
  private drawTiles(atlas: TileAtlas, ratio: number): boolean {
    const level = Math.max(0, Math.min(topLevel(this.axes.n), Math.ceil(Math.log2(1 / (this.scale * ratio)))));
    const span = SIDE << level;
    const [key0, row0, key1, row1] = this.inView();
    const until = performance.now() + PATIENCE;
    this.context.imageSmoothingEnabled = false;
    let late = false;
    for (let y = Math.floor(row0 / span); y * span < row1; y++)
      for (let x = Math.floor(key0 / span); x * span < key1; x++) {
        const place = { level, x, y };
        const canvas = atlas.get(place, performance.now() < until);
        if (canvas) this.drawPart(canvas, x * span, y * span, 1 << level);
        else {
          late = true;
          const coarse = atlas.coarser(place);
          if (coarse) this.drawPart(coarse.canvas, (x >> coarse.up) * (span << coarse.up), (y >> coarse.up) * (span << coarse.up), 1 << (level + coarse.up));
        }
      }
    if (late) this.redraw();
    return !late && !atlas.sharpening;
  }

  /** Draws what can be seen of a tile whose first pair is (row0, key0) and whose pixels are `step` tokens wide. */
  private drawPart(canvas: HTMLCanvasElement, key0: number, row0: number, step: number): void {
    const [left, top, right, bottom] = this.inView();
    const x = Math.max(0, Math.floor((left - key0) / step));
    const y = Math.max(0, Math.floor((top - row0) / step));
    const width = Math.min(SIDE, Math.ceil((right - key0) / step)) - x;
    const height = Math.min(SIDE, Math.ceil((bottom - row0) / step)) - y;
    if (width <= 0 || height <= 0) return;
    const [atX, atY] = this.toScreen(key0 + x * step, row0 + y * step);
    this.context.drawImage(canvas, x, y, width, height, atX, atY, width * step * this.scale, height * step * this.scale);
  }

  /** First key, first row, end of keys, end of rows on the screen. */
  private inView(): [number, number, number, number] {
    const [x0, y0] = this.transform.invert([this.gutter, this.gutter]);
    const [x1, y1] = this.transform.invert([this.size, this.size]);
    const token = (at: number): number => (at - this.gutter) / this.fit;
    return [Math.max(0, Math.floor(token(x0))), Math.max(0, Math.floor(token(y0))), Math.min(this.axes.n, Math.ceil(token(x1))), Math.min(this.axes.n, Math.ceil(token(y1)))];
  }

  private drawGrid(look: Look): void {
    const { context, gutter, size } = this;
    const [key0, row0, key1, row1] = this.inView();
    context.strokeStyle = look.empty;
    context.globalAlpha = 0.6;
    context.lineWidth = 0.5;
    context.beginPath();
    for (let key = key0; key <= key1; key++) {
      const [x] = this.toScreen(key, 0);
      context.moveTo(x, gutter);
      context.lineTo(x, size);
    }
    for (let row = row0; row <= row1; row++) {
      const [, y] = this.toScreen(0, row);
      context.moveTo(gutter, y);
      context.lineTo(size, y);
    }
    context.stroke();
    context.globalAlpha = 1;
  }

  private drawMarks(look: Look): void {
    const { context, gutter, size } = this;
    const side = Math.max(3, this.scale);
    const box = (row: number, key: number, colour: string): void => {
      const [x, y] = this.toScreen(key + 0.5, row + 0.5);
      context.strokeStyle = colour;
      context.lineWidth = 2;
      context.strokeRect(x - side / 2 - 1, y - side / 2 - 1, side + 2, side + 2);
    };
    const line = (x0: number, y0: number, x1: number, y1: number, colour: string, alpha: number): void => {
      context.globalAlpha = alpha;
      context.strokeStyle = colour;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
      context.stroke();
      context.globalAlpha = 1;
    };
    const [, pinY] = this.toScreen(0, this.pinned.row + 0.5);
    line(gutter, pinY, size, pinY, look.accent, 0.55);
    if (this.pinned.key !== null) box(this.pinned.row, this.pinned.key, look.accent);
    if (!this.cursor) return;
    const [x, y] = this.toScreen(this.cursor.key + 0.5, this.cursor.row + 0.5);
    line(gutter, y, size, y, look.ink, 0.35);
    line(x, gutter, x, size, look.ink, 0.35);
    box(this.cursor.row, this.cursor.key, look.ink);
  }

  private drawAxes(look: Look): void {
    const { context, gutter } = this;
    const small = gutter < 80;
    context.font = `${small ? 10 : 11}px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace`;
    context.textBaseline = "middle";
    for (const label of this.labels()) this.write(label, look);
    this.drawMade(look);
    context.fillStyle = look.faint;
    context.font = `${small ? 10 : 11}px system-ui, sans-serif`;
    context.textAlign = "right";
    context.fillText("keys →", gutter - 6, gutter - 22);
    context.fillText("queries ↓", gutter - 6, gutter - 8);
  }

  /** A line along the axes where the model wrote the text. */
  private drawMade(look: Look): void {
    const { context, gutter, size } = this;
    context.fillStyle = look.accent;
    const inside = (at: number): number => Math.max(gutter, Math.min(size, at));
    const [top, bottom] = this.axes.made("row").map((row) => inside(this.toScreen(0, row)[1])) as [number, number];
    const [left, right] = this.axes.made("key").map((key) => inside(this.toScreen(key, 0)[0])) as [number, number];
    context.fillRect(gutter - 3, top, 2, bottom - top);
    context.fillRect(left, gutter - 3, right - left, 2);
  }

  /** The tokens to write along an axis: all where there is room, else round positions. */
  private ticks(from: number, to: number): number[] {
    const room = LETTERS / this.scale;
    const step = room <= 1 ? 1 : niceStep(room * 3);
    const first = Math.ceil(from / step) * step;
    return Array.from({ length: Math.max(0, Math.ceil((to - first) / step)) }, (_, at) => first + at * step);
  }

  /** What stands along both axes, and where. */
  private labels(): Label[] {
    const [key0, row0, key1, row1] = this.inView();
    const letters = Math.floor((this.gutter - 30) / 6.7);
    const text = (axis: "row" | "key", token: number): string => {
      if (this.scale < LETTERS) return String(this.axes.place(axis, token));
      const whole = this.axes.label(axis, token);
      return whole.length > letters + 4 ? `${whole.slice(0, letters + 3)}…` : whole;
    };
    const rows = this.ticks(row0, row1).map((token): Label => ({ axis: "row", token, text: text("row", token), at: this.toScreen(0, token + 0.5)[1] }));
    const keys = this.ticks(key0, key1).map((token): Label => ({ axis: "key", token, text: text("key", token), at: this.toScreen(token + 0.5, 0)[0] }));
    return [...rows, ...keys].filter(({ at }) => at >= this.gutter);
  }

  private write({ axis, token, text, at }: Label, look: Look): void {
    const { context, gutter } = this;
    const lit = this.cursor && token === this.cursor[axis];
    const pinned = token === this.pinned[axis];
    context.save();
    context.translate(axis === "row" ? gutter - 5 : at, axis === "row" ? at : gutter - 5);
    if (axis === "key") context.rotate(-Math.PI / 2);
    context.textAlign = axis === "row" ? "right" : "left";
    context.fillStyle = pinned ? look.accent : lit ? look.ink : look.faint;
    if (lit || pinned) context.font = `600 ${context.font.replace(/^\d+ /, "")}`;
    context.fillText(text, 0, 0);
    context.restore();
  }
}

function niceStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(least));
  return Math.max(1, [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least)!);
}
