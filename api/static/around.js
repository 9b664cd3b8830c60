// The sky around a source in the operator's Aladin Lite: every stored cutout a layer, every source a marker.
const home = document.getElementById("aladin"), says = document.getElementById("aladin-says");
const data = JSON.parse(home.dataset.sky), drawn = data.sources.filter((one) => one.cutout);
const page = (id) => `/source/${encodeURIComponent(id)}`;

function markers(A, view, name, sources, fields) {
  const catalogue = A.catalog({ name, shape: "circle", sourceSize: 16, ...fields });
  view.addCatalog(catalogue);
  catalogue.addSources(sources.map((one) => A.source(one.ra, one.dec, { id: one.id })));
}

try {
  // as a module, or as the script that sets A
  const A = (await import("/aladin.js")).default ?? window.A;
  await A.init;
  const view = A.aladin("#aladin", {
    survey: [], target: `${data.ra} ${data.dec}`, fov: data.fov, cooFrame: "ICRSd", log: false, showReticle: false,
    showLayersControl: false, showSimbadPointerControl: false, showProjectionControl: false, showSettingsControl: false,
    showShareControl: false, showStackLayerControl: false, showFullscreenControl: true,
  });
  let ready = 0, failed = 0;
  const ended = () => {
    const missing = failed ? `, ${failed} could not be read` : "";
    says.textContent = `${ready} of ${drawn.length} cutouts${missing}`;
    home.dataset.ready = String(ready + failed === drawn.length);
  };
  drawn.toReversed().forEach((one) => {  // the asked source on top
    const layer = A.image(new URL(one.cutout, location.href).href, {
      name: one.id, imgFormat: "fits", stretch: "asinh", minCut: data.cuts[0], maxCut: data.cuts[1],
      successCallback: () => { ready += 1; ended(); }, errorCallback: () => { failed += 1; ended(); },
    });
    view.setOverlayImageLayer(layer, one.id);
  });
  markers(A, view, "measured redshift", data.sources.filter((one) => one.labelled), { color: "#ffd166" });
  markers(A, view, "no redshift", data.sources.filter((one) => !one.labelled), { color: "#7fb0ea" });
  view.on("objectClicked", (hit) => { if (hit && hit.data && hit.data.id) location.assign(page(hit.data.id)); });
  document.getElementById("aladin-legend").hidden = false;
  ended();
} catch (error) {
  home.hidden = true;
  says.textContent = `Aladin Lite could not be started: ${error.message ?? error}`;
}
