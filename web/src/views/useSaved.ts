/** Offers what a view shows to those who save it, as long as the view is open. */
import { useLayoutEffect } from "preact/hooks";
import { shown, type Shown } from "../save";

export function useSaved(offer: Shown): void {
  useLayoutEffect(() => {
    shown.value = offer;
    return () => void (shown.peek() === offer && (shown.value = null));
  }, []);
}
