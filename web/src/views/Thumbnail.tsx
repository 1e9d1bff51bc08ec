/** A head's pooled map, as large as its box. */
import { useEffect, useRef } from "preact/hooks";
import { cells, pooled } from "../data";
import { logStep, ramp } from "../colour";
import { theme } from "../state";

export function Thumbnail({ layer, head }: { layer: number; head: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const colours = theme.value;
  useEffect(() => {
    let gone = false;
    void pooled(layer).then((maps) => !gone && canvas.current && paint(canvas.current, maps[head]!, ramp(colours).packed));
    return () => void (gone = true);
  }, [layer, head, colours]);
  return <canvas ref={canvas} class="thumbnail" width={cells} height={cells} aria-hidden="true" />;
}

function paint(canvas: HTMLCanvasElement, map: Float32Array, colours: Uint32Array): void {
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(cells, cells);
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < map.length; at++) if (map[at]! > 0) pixels[at] = colours[logStep(map[at]!)]!;
  context.putImageData(image, 0, 0);
}
