// Balls and sticks of the conformations in #view-data, drawn by plotly into #view; a step at a time by #step.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("view-data").textContent);
  const view = document.getElementById("view");
  const step = document.getElementById("step");
  const ensemble = document.getElementById("ensemble");
  const caption = document.getElementById("view-caption");

  // A unit sphere: the icosahedron, each face cut in four, twice.
  function sphere() {
    const t = (1 + Math.sqrt(5)) / 2;
    let points = [[-1, t, 0], [1, t, 0], [-1, -t, 0], [1, -t, 0], [0, -1, t], [0, 1, t], [0, -1, -t], [0, 1, -t],
                  [t, 0, -1], [t, 0, 1], [-t, 0, -1], [-t, 0, 1]];
    let faces = [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4], [11, 10, 2],
                 [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8], [3, 8, 9], [4, 9, 5], [2, 4, 11],
                 [6, 2, 10], [8, 6, 7], [9, 8, 1]];
    for (let cut = 0; cut < 2; cut++) {
      const known = new Map();
      const middle = (a, b) => {
        const key = Math.min(a, b) + "," + Math.max(a, b);
        if (!known.has(key)) known.set(key, points.push(points[a].map((value, k) => (value + points[b][k]) / 2)) - 1);
        return known.get(key);
      };
      faces = faces.flatMap(([a, b, c]) => {
        const [d, e, f] = [middle(a, b), middle(b, c), middle(c, a)];
        return [[a, d, f], [b, e, d], [c, f, e], [d, e, f]];
      });
    }
    return {points: points.map(p => p.map(value => value / Math.hypot(...p))), faces};
  }

  const ball = sphere();
  const kinds = [...new Set(data.elements)];
  const members = kinds.map(kind => data.elements.flatMap((element, atom) => element === kind ? [atom] : []));

  // Coordinates of every trace, bonds first, for one conformation: [x, y, z] each a list over traces.
  function coordinates(positions) {
    return [0, 1, 2].map(k => [
      data.bonds.flatMap(([i, j]) => [positions[i][k], positions[j][k], null]),
      ...members.map((atoms, kind) => atoms.flatMap(
        atom => ball.points.map(point => positions[atom][k] + data.radii[kinds[kind]] * point[k]))),
    ]);
  }

  function traces(positions) {
    const [x, y, z] = coordinates(positions);
    const bonds = {type: "scatter3d", mode: "lines", line: {color: "#9a9a9a", width: 9}, hoverinfo: "skip",
                   showlegend: false, x: x[0], y: y[0], z: z[0]};
    const balls = kinds.map((kind, number) => {
      const faces = members[number].flatMap((_, atom) => ball.faces.map(face => face.map(v => v + atom * ball.points.length)));
      return {
        type: "mesh3d", name: kind, color: data.colors[kind], showlegend: true, flatshading: false,
        x: x[number + 1], y: y[number + 1], z: z[number + 1],
        i: faces.map(face => face[0]), j: faces.map(face => face[1]), k: faces.map(face => face[2]),
        lighting: {ambient: 0.55, diffuse: 0.75, specular: 0.25, roughness: 0.5, fresnel: 0.05},
        lightposition: {x: 2000, y: 3000, z: 4000},
        text: members[number].flatMap(atom => ball.points.map(() => data.atoms[atom])), hoverinfo: "text",
      };
    });
    return [bonds, ...balls];
  }

  // One box for all conformations, so that stepping does not zoom.
  const all = data.ensembles.flatMap(one => one.positions.flat());
  const reach = 0.05 + Math.max(...all.map(point => Math.hypot(...point)));
  const axis = {visible: false, range: [-reach, reach]};
  const layout = {
    margin: {l: 0, r: 0, t: 0, b: 0}, paper_bgcolor: "#e9edf2", legend: {x: 0.01, y: 0.99},
    scene: {xaxis: axis, yaxis: axis, zaxis: axis, aspectmode: "cube", dragmode: "orbit",
            camera: {eye: {x: 0.75, y: 0.75, z: 0.45}}},
  };

  function chosen() {
    return data.ensembles[ensemble.selectedIndex];
  }

  function describe() {
    const number = Number(step.value);
    caption.textContent = `Conformation ${number + 1} of ${chosen().positions.length}: ${chosen().captions[number]}`;
  }

  function show() {
    const [x, y, z] = coordinates(chosen().positions[Number(step.value)]);
    Plotly.restyle(view, {x, y, z});
    describe();
  }

  function move(by) {
    const count = chosen().positions.length;
    step.value = (Number(step.value) + by + count) % count;
    show();
  }

  for (const one of data.ensembles) ensemble.add(new Option(one.name));
  ensemble.addEventListener("change", () => {
    step.max = chosen().positions.length - 1;
    step.value = 0;
    show();
  });
  step.max = chosen().positions.length - 1;
  step.addEventListener("input", show);
  document.getElementById("previous").addEventListener("click", () => move(-1));
  document.getElementById("next").addEventListener("click", () => move(1));
  const options = {displaylogo: false, responsive: true, scrollZoom: true,
                   modeBarButtonsToRemove: ["tableRotation", "resetCameraLastSave3d"]};
  Plotly.newPlot(view, traces(chosen().positions[0]), layout, options).then(describe);
})();
