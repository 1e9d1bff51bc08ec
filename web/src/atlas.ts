/** Tiles as pictures: drawn when first looked at, a bounded number kept, sharpened by the server where there is one. */
import { layers, served, threshold } from "./data";
import { logStep, ramp, signedStep, type Theme } from "./colour";
import { Queue, region } from "./exact";
import { grainsOf } from "./grain";
import { differences, SIDE, tileValues, topLevel, type HeadMap, type Options, type Place } from "./tiles";

const KEPT = 160;

interface Picture {
  canvas: HTMLCanvasElement;
  exact: boolean;
}

export class TileAtlas {
  private readonly pictures = new Map<string, Picture>();
  private readonly queue = new Queue(2);
  private readonly asked = new Set<string>();
  private closed = false;
  /** How many tiles the server is asked for. */
  private open = 0;

  constructor(
    readonly map: HeadMap,
    readonly options: Options,
    readonly theme: Theme,
    private readonly changed: () => void,
    /** What the map is shown less of, if it is a difference. */
    readonly less: HeadMap | null = null,
  ) {}

  values(place: Place): Float32Array {
    return this.less ? differences(this.map, this.less, place, this.options) : tileValues(this.map, place, this.options);
  }

  /** The tile's picture; null where there is none yet and `mayDraw` is false. */
  get(place: Place, mayDraw: boolean): HTMLCanvasElement | null {
    const name = `${place.level}/${place.y}/${place.x}`;
    const found = this.pictures.get(name);
    if (found) {
      this.pictures.delete(name);
      this.pictures.set(name, found);
      return found.canvas;
    }
    if (!mayDraw) return null;
    const canvas = this.keep(name, this.values(place), false);
    if (this.refinable(place)) this.refine(name, place);
    return canvas;
  }

  /** The nearest coarser picture that covers the tile. */
  coarser(place: Place): { canvas: HTMLCanvasElement; up: number } | null {
    const top = topLevel(this.map.n);
    for (let up = 1; place.level + up <= top; up++) {
      const canvas = this.get({ level: place.level + up, x: place.x >> up, y: place.y >> up }, place.level + up === top);
      if (canvas) return { canvas, up };
    }
    return null;
  }

  get sharpening(): boolean {
    return this.open > 0;
  }

  close(): void {
    this.closed = true;
    this.queue.clear();
  }

  /** A pooled pixel cannot leave out weak weights or single keys, so those options keep the page's own tiles. */
  private refinable({ level }: Place): boolean {
    return served && !this.less && !this.map.side && this.map.grain === "tokens" && !this.options.hideSinks && (level === 0 || this.options.floor <= threshold);
  }

  private refine(name: string, { level, x, y }: Place): void {
    if (this.asked.has(name)) return;
    this.asked.add(name);
    const ends = grainsOf("tokens", this.map.layer);
    const [rows, keys] = [y, x].map((at, axis) => [(at * SIDE) << level, Math.min(ends[axis]!.n, ((at + 1) * SIDE) << level)]) as [[number, number], [number, number]];
    if (rows[0] >= rows[1] || keys[0] >= keys[1]) return;
    this.open++;
    this.queue.add(async () => {
      try {
        const values = await region(layers[this.map.layer]!.index, this.map.head, rows, keys, 1 << level, this.map.lengths !== null);
        if (this.closed) return;
        this.keep(name, this.spread(values, Math.ceil((keys[1] - keys[0]) / (1 << level))), true);
      } catch (error) {
        console.warn(`the tile ${name} stays as in the static page: ${String(error)}`);
      } finally {
        this.open--;
        if (!this.closed) this.changed();
      }
    });
  }

  /** A region's rows, laid into a whole tile, without what is below the floor. */
  private spread(values: Float32Array, width: number): Float32Array {
    const out = new Float32Array(SIDE * SIDE).fill(NaN);
    for (let at = 0; at < values.length; at++)
      out[Math.floor(at / width) * SIDE + (at % width)] = values[at]! < this.options.floor * this.map.unit ? 0 : values[at]!;
    return out;
  }

  private keep(name: string, values: Float32Array, exact: boolean): HTMLCanvasElement {
    const canvas = paint(values, Math.max(this.map.unit, this.less?.unit ?? 0), this.theme, this.less !== null);
    this.pictures.delete(name);
    this.pictures.set(name, { canvas, exact });
    if (this.pictures.size > KEPT) {
      const oldest = this.pictures.keys().next().value!;
      this.pictures.delete(oldest);
      this.asked.delete(oldest);
    }
    return canvas;
  }
}

function paint(values: Float32Array, unit: number, theme: Theme, signed: boolean): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(SIDE, SIDE);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = ramp(theme, signed).packed;
  const step = signed ? signedStep : logStep;
  for (let at = 0; at < values.length; at++) if (!Number.isNaN(values[at]!)) pixels[at] = colours[step(values[at]! / unit)]!;
  context.putImageData(image, 0, 0);
  return canvas;
}
