"use strict";
// Plays the boundary film. All text from the run goes in by textContent and setAttribute, never as markup.
(() => {
  const film = JSON.parse(document.getElementById("film-data").textContent);
  const byId = (id) => document.getElementById(id);
  const slider = byId("film-step");
  const play = byId("film-play");
  const cells = [...document.querySelectorAll("#film .cell")];
  const counts = [...document.querySelectorAll("#film [data-count]")];
  const last = film.steps.length - 1;
  const frameMilliseconds = 900;
  let position = last;
  let selected = null;
  let timer = null;

  function setMark(badge, outcome) {
    badge.dataset.outcome = outcome.key;
    badge.firstElementChild.setAttribute("href", `#mark-${outcome.key}`);
  }

  function showDetail() {
    if (selected === null) return;
    const cell = film.cells[selected];
    const outcome = film.outcomes[cell.outcomes[position]];
    byId("film-detail").hidden = false;
    byId("detail-picture").className = cells[selected].querySelector(".picture").className;
    byId("detail-question").textContent = cell.question;
    byId("detail-reply").textContent = cell.replies[position] || "\u2013";
    byId("detail-truth").textContent = cell.truth;
    byId("detail-outcome").textContent = outcome.label;
    setMark(byId("detail-badge"), outcome);
    const history = cell.outcomes.map((number, index) => {
      const entry = document.createElement("li");
      const badge = byId("detail-badge").cloneNode(true);
      badge.removeAttribute("id");
      setMark(badge, film.outcomes[number]);
      entry.title = `step ${film.steps[index]}: ${film.outcomes[number].label}`;
      entry.append(badge, String(film.steps[index]));
      if (index === position) entry.setAttribute("aria-current", "step");
      return entry;
    });
    byId("detail-history").replaceChildren(...history);
  }

  function show(index) {
    position = Math.min(Math.max(index, 0), last);
    slider.value = position;
    slider.setAttribute("aria-valuetext", `step ${film.steps[position]}`);
    byId("film-now").textContent = `${film.steps[position]} (${position + 1} of ${last + 1})`;
    const tally = {};
    film.cells.forEach((cell, number) => {
      const outcome = film.outcomes[cell.outcomes[position]];
      cells[number].dataset.outcome = outcome.key;
      cells[number].setAttribute("aria-label", `${cell.question} ${outcome.label}`);
      setMark(cells[number].querySelector(".badge"), outcome);
      const key = `${cell.group} ${outcome.key}`;
      tally[key] = (tally[key] || 0) + 1;
    });
    counts.forEach((count) => { count.textContent = tally[count.dataset.count] || 0; });
    showDetail();
  }

  function goTo(index) {
    show(index);
    history.replaceState(null, "", `#step=${film.steps[position]}`);
  }

  function select(number) {
    if (selected !== null) cells[selected].tabIndex = -1;
    selected = number;
    cells[number].tabIndex = 0;
    showDetail();
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function togglePlay() {
    if (timer !== null) return stop();
    goTo(position === last ? 0 : position + 1);
    play.textContent = "Pause";
    timer = setInterval(() => (position < last ? goTo(position + 1) : stop()), frameMilliseconds);
  }

  function onKey(event) {
    const inFilm = event.target === document.body || event.target.closest("#film");
    if (!inFilm || event.altKey || event.ctrlKey || event.metaKey) return;
    const stepBy = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const cellBy = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (stepBy) {
      stop();
      goTo(position + stepBy);
    } else if (cellBy && event.target.closest(".cell")) {
      const next = (selected + cellBy + cells.length) % cells.length;
      cells[next].focus();
    } else {
      return;
    }
    event.preventDefault();
  }

  function fromAddress() {
    const asked = /^#step=(-?\d+)$/.exec(location.hash);
    const index = asked ? film.steps.indexOf(Number(asked[1])) : -1;
    if (index >= 0) show(index);
  }

  cells.forEach((cell, number) => {
    cell.addEventListener("mouseenter", () => select(number));
    cell.addEventListener("focus", () => select(number));
  });
  slider.addEventListener("input", () => { stop(); goTo(Number(slider.value)); });
  play.addEventListener("click", togglePlay);
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", fromAddress);
  play.hidden = last === 0;
  show(last);
  select(0);
  fromAddress();
})();
