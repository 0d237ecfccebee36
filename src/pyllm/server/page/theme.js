// Runs before the page is painted, so that it does not flash in the other theme.
try {
  const theme = localStorage.getItem("pyllm.theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch {
  // Without storage the system's theme holds.
}
