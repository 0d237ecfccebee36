// The newest message stays in view until the person scrolls up.

import { find } from "./dom.js";

const place = find("scroll");
const button = find("to-end");
let follows = true;
let last = 0;

const distance = () => place.scrollHeight - place.clientHeight - place.scrollTop;

export function follow() {
  if (follows) place.scrollTop = place.scrollHeight;
  button.hidden = follows || distance() < 24;
}

export function toEnd() {
  follows = true;
  follow();
}

place.addEventListener("scroll", () => {
  if (distance() < 4) follows = true;
  else if (place.scrollTop < last) follows = false;
  last = place.scrollTop;
  button.hidden = follows || distance() < 24;
});
place.addEventListener("wheel", (event) => {
  if (event.deltaY < 0 && place.scrollHeight > place.clientHeight) follows = false;
}, { passive: true });
button.addEventListener("click", toEnd);
