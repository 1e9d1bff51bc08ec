/** What a promise brought, and null until then. */
import { useEffect, useState } from "preact/hooks";

export function useLoaded<T>(load: () => Promise<T>, on: unknown[]): T | null {
  const [loaded, setLoaded] = useState<{ value: T; on: unknown[] } | null>(null);
  useEffect(() => {
    let gone = false;
    void load().then((value) => !gone && setLoaded({ value, on }));
    return () => void (gone = true);
  }, on);
  return loaded && loaded.on.every((part, at) => part === on[at]) ? loaded.value : null;
}
