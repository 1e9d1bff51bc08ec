/** A head's pooled map, as large as its box. */
import { useEffect, useRef } from "preact/hooks";
import { cells } from "../data";
import { logStep, ramp } from "../colour";
import { theme } from "../state";
import { headMap, pooled } from "../tiles";

const made = new Map<string, Promise<Float32Array>>();

function pooledOf(layer: number, head: number): Promise<Float32Array> {
  const name = `${layer}/${head}`;
  if (!made.has(name)) made.set(name, headMap(layer, head).then(pooled));
  return made.get(name)!;
}

const AT_ONCE = 6; // maps in the making, so that the page answers in between
const waiting: (() => Promise<void>)[] = [];
let running = 0;

function inTurn(job: () => Promise<void>): void {
  waiting.push(job);
  while (running < AT_ONCE && waiting.length) {
    running++;
    void waiting.shift()!().finally(() => {
      running--;
      const next = waiting.shift();
      if (next) inTurn(next);
    });
  }
}

/** Made when it is first seen: of hundreds of heads a few are on the screen. */
export function Thumbnail({ layer, head }: { layer: number; head: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const colours = theme.value;
  useEffect(() => {
    let gone = false;
    const watcher = new IntersectionObserver(
      ([seen]) => {
        if (!seen!.isIntersecting) return;
        watcher.disconnect();
        inTurn(async () => {
          if (gone) return;
          const map = await pooledOf(layer, head);
          if (!gone && canvas.current) paint(canvas.current, map, ramp(colours).packed);
        });
      },
      { rootMargin: "200px" },
    );
    watcher.observe(canvas.current!);
    return () => {
      gone = true;
      watcher.disconnect();
    };
  }, [layer, head, colours]);
  return <canvas ref={canvas} class="thumbnail" width={cells} height={cells} aria-hidden="true" />;
}

function paint(canvas: HTMLCanvasElement, map: Float32Array, colours: Uint32Array): void {
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(cells, cells);
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < map.length; at++) if (!Number.isNaN(map[at]!)) pixels[at] = colours[logStep(map[at]!)]!;
  context.putImageData(image, 0, 0);
  canvas.dataset.drawn = "";
}
