// What the reader asks of OHIF from inside its page; OHIF puts its services on `window`.
// Knows how cornerstone names things. Refuses to judge: it gives numbers and pixels.
window.ask = (() => {
  const services = () => window.services;
  const viewport = () => {
    const grid = services()?.viewportGridService;
    if (!grid?.serviceImplementation?._getState) return null; // the page is still being built
    return services().cornerstoneViewportService.getCornerstoneViewport(grid.getActiveViewportId());
  };
  const frame = () => new Promise(resolve => requestAnimationFrame(resolve));

  const later = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

  // Done and then drawn: a change of segmentations asks for its own rendering, later. Where that
  // does not come (the viewport was just built anew) it is asked for.
  const drawn = async change => {
    const name = cornerstone.Enums.Events.IMAGE_RENDERED;
    for (let attempt = 0; attempt < 10; attempt++) {
      const shown = viewport();
      if (shown?.element) {
        let came;
        const event = new Promise(resolve => {
          came = () => resolve(true);
          shown.element.addEventListener(name, came, { once: true });
        });
        attempt ? shown.render() : change();
        if (await Promise.race([event, later(1000)])) return;
        shown.element.removeEventListener(name, came);
      } else await later(200);
    }
    throw new Error('nothing was drawn');
  };

  const settled = async () => {
    await drawn(() => viewport().render());
    await frame();
    await frame();
  };

  // ".../instances/UID/frames/N" of a wadors image id
  const named = imageId => {
    const [, sop, number] = /instances\/([\d.]+)\/frames\/(\d+)/.exec(imageId) ?? [];
    return { sop, frame: Number(number) };
  };

  const hasImage = () => {
    const shown = viewport();
    return Boolean(shown?.getImageData?.() && shown.getCurrentImageId?.());
  };

  // What was opened has become part of the image's own viewport, which is built anew for it.
  const joined = modality => {
    if (!hasImage()) return false;
    const { viewportGridService, displaySetService, segmentationService } = services();
    const { id } = viewport();
    const uids = viewportGridService.getDisplaySetsUIDsForViewport(id) ?? [];
    const apart = uids.some(uid => displaySetService.getDisplaySetByUID(uid)?.Modality === modality);
    return !apart
      && (modality !== 'SEG' || segmentationService.getSegmentationRepresentations(id).length > 0);
  };

  const displaySets = () =>
    services().displaySetService.getActiveDisplaySets().map(set => ({
      uid: set.displaySetInstanceUID,
      modality: set.Modality,
      series: set.SeriesInstanceUID,
      sop: set.SOPInstanceUID ?? null,
      loaded: Boolean(set.isLoaded),
      hydrated: Boolean(set.isHydrated),
      hydratable: Boolean(set.isRehydratable),
      drawable: set.measurements?.filter(m => m.loaded).length ?? null,
    }));

  const images = () => viewport().getImageIds().map(named);

  const show = async (sop, number) => {
    const shown = viewport();
    const index = images().findIndex(i => i.sop === sop && i.frame === number);
    if (index < 0) return false;
    await shown.setImageIdIndex(index);
    await settled();
    return true;
  };

  // The canvas on the page, and three of its corners in image coordinates as SCOORD counts them:
  // (column, row), at the outer edges of pixels.
  const place = () => {
    const shown = viewport();
    const { x, y, width, height } = shown.getCanvas().getBoundingClientRect();
    const id = shown.getCurrentImageId();
    const at = point =>
      cornerstone.utilities.worldToImageCoords(id, shown.canvasToWorld(point));
    return { box: [x, y, width, height], corners: [at([0, 0]), at([width, 0]), at([0, height])] };
  };

  const segments = () => {
    const shown = viewport();
    return services().segmentationService.getSegmentations().flatMap(segmentation =>
      Object.values(segmentation.segments).map(segment => ({
        segmentation: segmentation.segmentationId,
        number: segment.segmentIndex,
        label: segment.label,
        colour: Array.from(
          services().segmentationService.getSegmentColor(
            shown.id, segmentation.segmentationId, segment.segmentIndex
          ) ?? []
        ).slice(0, 3),
      }))
    );
  };

  // Opaque, without outlines: a pixel is in or out.
  const plain = on => {
    const style = on
      ? { renderOutline: false, fillAlpha: 1, fillAlphaInactive: 1 }
      : { renderOutline: true, fillAlpha: 0.5, fillAlphaInactive: 0.4 };
    cornerstoneTools.segmentation.config.style.setStyle({ type: 'Labelmap' }, style);
  };

  const only = async numbers => {
    const shown = viewport();
    await drawn(() => {
      for (const { segmentation, number } of segments()) {
        services().segmentationService.setSegmentVisibility(
          shown.id, segmentation, number, numbers.includes(number)
        );
      }
    });
    await settled();
  };

  // What a screenshot shall show: everything (''), images only, or images and drawings.
  const style = document.createElement('style');
  style.textContent = `
    [data-only] [data-cy="viewport-pane"] * { visibility: hidden !important; }
    [data-only] .cornerstone-canvas { visibility: visible !important; }
    [data-only="drawing"] .svg-layer :is(polyline, path, line:not([stroke-dasharray="2,3"])) {
      visibility: visible !important;
    }`;
  const bare = async what => {
    const root = document.documentElement;
    if (!style.isConnected) document.head.append(style);
    if (what) root.dataset.only = what;
    else delete root.dataset.only;
    await frame();
    await frame();
  };

  const measurements = () =>
    services().measurementService.getMeasurements().map(measurement => {
      const made = cornerstoneTools.annotation.state.getAnnotation(measurement.uid);
      const id = made.metadata.referencedImageId;
      const points = made.data.contour?.polyline ?? made.data.handles.points;
      return {
        label: measurement.label || measurement.finding?.text || '',
        tool: measurement.toolName,
        values: measurement.displayText?.primary ?? [],
        ...named(id),
        points: Array.from(points, p => cornerstone.utilities.worldToImageCoords(id, p)),
      };
    });

  // Of a viewport that shows no image: what a person reads there.
  const words = () => document.querySelector('[data-cy="viewport-pane"]')?.innerText ?? '';

  return {
    bare, displaySets, hasImage, images, joined, measurements, only, place, plain, segments,
    settled, show, words,
  };
})();
