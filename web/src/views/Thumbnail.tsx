/** A head's pooled map, as large as its box. */
import { useEffect, useRef } from "preact/hooks";
import { cellOf } from "../cells";
import { cells, lengths, textsOf } from "../data";
import { logStep, ramp } from "../colour";
import { theme } from "../state";
import { headMap, pooled } from "../tiles";

const made = new Map<string, Promise<Float32Array>>();

function pooledOf(layer: number, head: number): Promise<Float32Array> {
  const name = `${layer}/${head}`;
  if (!made.has(name)) made.set(name, headMap(layer, head).then(pooled));
  return made.get(name)!;
}

const AT_ONCE = 2; // maps in the making
const waiting: (() => Promise<void>)[] = [];
let running = 0;

/** When the page has nothing else to do: whatever is asked for comes before pictures. */
const idly = (job: () => void): void => void ("requestIdleCallback" in window ? requestIdleCallback(job, { timeout: 250 }) : setTimeout(job, 1));

function inTurn(job: () => Promise<void>): void {
  waiting.push(job);
  if (running < AT_ONCE) begin();
}

function begin(): void {
  running++;
  idly(() => {
    const job = waiting.shift() ?? (() => Promise.resolve());
    void job().finally(() => {
      running--;
      if (waiting.length) begin();
    });
  });
}

const whenSeen = new WeakMap<Element, () => void>();
/** One for all of them: each of its own would cost as much as its picture. */
const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      whenSeen.get(target)?.();
    }
  },
  { rootMargin: "200px" },
);

/** Made when it is first seen: of hundreds of heads a few are on the screen. */
export function Thumbnail({ layer, head }: { layer: number; head: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const colours = theme.value;
  useEffect(() => {
    let gone = false;
    const box = canvas.current!;
    whenSeen.set(box, () =>
      inTurn(async () => {
        if (gone) return;
        const map = await pooledOf(layer, head);
        if (!gone && canvas.current) paint(canvas.current, map, ramp(colours).packed);
      }),
    );
    watcher.observe(box);
    return () => {
      gone = true;
      watcher.unobserve(box);
    };
  }, [layer, head, colours]);
  const [tall, wide] = textsOf(layer).map(cellsOf) as [number, number];
  return <canvas ref={canvas} class="thumbnail" width={wide} height={tall} aria-hidden="true" />;
}

/** How many cells a text reaches into: of two texts the shorter one's map fills its box, too. */
const cellsOf = (text: number): number => cellOf[lengths[text]! - 1]! + 1;

function paint(canvas: HTMLCanvasElement, map: Float32Array, colours: Uint32Array): void {
  const context = canvas.getContext("2d")!;
  const { width, height } = canvas;
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const weight = map[y * cells + x]!;
      if (!Number.isNaN(weight)) pixels[y * width + x] = colours[logStep(weight)]!;
    }
  context.putImageData(image, 0, 0);
  canvas.dataset.drawn = "";
}
