/** The scale of colours with its units. */
import { logTicks, ramp, STEPS } from "../colour";
import { theme } from "../state";

const SAMPLES = Array.from({ length: 17 }, (_, sample) => Math.round((sample / 16) * (STEPS - 1)));

export interface Tick {
  at: number;
  label: string;
}

export function Legend({ title = "weight, log scale", ticks = logTicks(), signed = false }: { title?: string; ticks?: Tick[]; signed?: boolean }) {
  const colours = ramp(theme.value, signed).css;
  return (
    <figure class="legend" role="img" aria-label={ticks.length ? `${title}: from ${ticks[0]!.label} to ${ticks.at(-1)!.label}` : title}>
      <figcaption>{title}</figcaption>
      <div class="scale" style={{ background: `linear-gradient(to right, ${SAMPLES.map((step) => colours[step]).join(", ")})` }} />
      <div class="ticks">
        {ticks.map(({ at, label }) => (
          <span key={at} style={{ left: `${at * 100}%` }}>
            {label}
          </span>
        ))}
      </div>
    </figure>
  );
}
