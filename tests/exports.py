"""Data sets as annotation tools export them: writers of their layouts from COCO json, and the comparison with it."""

import base64
import json
import pathlib
import shutil
from csv import writer
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np

from rethink_tf.data.detection.segmentation import to_rle

OPEN_IMAGES_SPLITS = {'train': 'train', 'val': 'validation', 'test': 'test'}
ROBOFLOW_SPLITS = {'train': 'train', 'val': 'valid', 'test': 'test'}


class Item(NamedTuple):
  """An image of a data set."""

  split: str
  path: pathlib.Path
  name: str
  size: tuple  # height, width
  objects: list  # (name of the class, bbox, segmentation)


def load(folder, splits=('train', 'val')):
  """Return the images of a folder in the layout of own.gin, and the names of its categories by id."""
  items, names = [], {}
  for split in splits:
    content = json.loads((pathlib.Path(folder) / f'annotations/instances_{split}.json').read_text())
    names |= {category['id']: category['name'] for category in content['categories']}
    of_image = {}
    for entry in content['annotations']:
      of_image.setdefault(entry['image_id'], []).append(
        (names[entry['category_id']], entry.get('bbox'), entry['segmentation']))
    items += [Item(split, pathlib.Path(folder) / split / image['file_name'], image['file_name'],
                   (image['height'], image['width']), of_image.get(image['id'], [])) for image in content['images']]
  return items, names


def draw(folder, masks=True):
  """Write a small data set of its own in the layout of own.gin; return `load` of it.

  Two classes with a gap in their ids, names with spaces, accents and a suffix in capitals, an image without objects.
  """
  folder, random = pathlib.Path(folder), np.random.default_rng(7)
  names = {'train': ['a b.jpg', 'größe.jpg', 'C.JPG', 'sub/d.png', 'empty.jpg'], 'val': ['e.jpg', 'f.png']}
  categories = [{'id': 3, 'name': 'wide one'}, {'id': 7, 'name': 'tall'}]
  for split, files in names.items():
    images, annotations = [], []
    for i, name in enumerate(files, start=1):
      height, width = 40 + 4 * i, 64 + 2 * i
      images.append({'id': i, 'file_name': name, 'height': height, 'width': width})
      path = folder / split / name
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = random.integers(0, 255, [height, width, 3]).astype(np.uint8)
      path.write_bytes(cv2.imencode(path.suffix.lower(), pixels)[1].tobytes())
      for k in range(0 if name == 'empty.jpg' else 2):
        x, y, w, h = 4 + 26 * k, 6 + i, 20 + k, 9 + 12 * k
        polygon = [x, y, x + w, y, x + w, y + h, x + w / 2, y + h - 2.5, x, y + h]
        annotations.append({'id': 10 * i + k, 'image_id': i, 'category_id': categories[k]['id'], 'iscrowd': 0,
                            'bbox': [x, y, w, h], 'area': w * h, 'segmentation': [polygon] if masks else []})
    write_json(folder / f'annotations/instances_{split}.json',
               {'images': images, 'annotations': annotations, 'categories': categories})
  return load(folder)


def write_json(path, content):
  """Write a JSON file, and the folders that it needs."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def copy(item, target):
  """Copy the image of an item."""
  target.parent.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(item.path, target)


def flat(item):
  """Return the name of an image without folders, as most tools export it."""
  return item.name.replace('/', '_')


def as_coco(items, names, images, first_id=0, with_project=None):
  """Return COCO json of some images. images: their names. with_project: of category 0, above the others."""
  categories = [{'id': 0, 'name': with_project, 'supercategory': 'none'}] if with_project else []
  ids = {name: i for i, name in enumerate(sorted(set(names.values())), start=1)}
  categories += [{'id': i, 'name': name, 'supercategory': with_project or ''} for name, i in ids.items()]
  annotations = [{'id': first_id + k, 'image_id': i, 'category_id': ids[label], 'bbox': bbox, 'iscrowd': 0,
                  'area': bbox[2] * bbox[3], 'segmentation': segmentation}
                 for k, (i, (label, bbox, segmentation)) in enumerate(
                   (i, one) for i, item in enumerate(items) for one in item.objects)]
  return {'info': {'year': '2024', 'version': '1', 'description': 'Exported from roboflow.com'},
          'licenses': [{'id': 1, 'url': '', 'name': 'CC BY 4.0'}], 'categories': categories,
          'images': [{'id': i, 'license': 1, 'file_name': name, 'height': item.size[0], 'width': item.size[1],
                      'date_captured': '2024-01-01T00:00:00+00:00'}
                     for i, (item, name) in enumerate(zip(items, images, strict=True))], 'annotations': annotations}


def roboflow(items, names, folder, project='things'):
  """Roboflow's COCO export: a folder for each split with images and _annotations.coco.json, ids from 0 in each."""
  for split in dict.fromkeys(item.split for item in items):
    own = [item for item in items if item.split == split]
    target = folder / ROBOFLOW_SPLITS[split]
    for item in own:
      copy(item, target / flat(item))
    write_json(target / '_annotations.coco.json', as_coco(own, names, map(flat, own), with_project=project))
  (folder / 'README.roboflow.txt').write_text('exported via roboflow.com\n')


def cvat_coco(items, names, folder):
  """CVAT's "COCO 1.0" of a task without subsets: annotations/instances_default.json and images/."""
  for item in items:
    copy(item, folder / 'images' / item.name)
  content = as_coco(items, names, [item.name for item in items], first_id=1)
  for entry in content['annotations']:
    entry['attributes'] = {'occluded': False}
  write_json(folder / 'annotations/instances_default.json', content)


def yolo_line(number, item, bbox, segmentation, outlines):
  """Return a line of YOLO: a box, or the first outline."""
  height, width = item.size
  if outlines and segmentation:
    values = np.reshape(segmentation[0], [-1, 2]) / (width, height)
  else:
    x, y, w, h = bbox
    values = np.array([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
  return f'{number} ' + ' '.join(f'{value:.7f}' for value in values.ravel())


def cvat_yolo(items, names, folder):
  """CVAT's "YOLO 1.1": obj.names, obj.data, train.txt, valid.txt, images and boxes in obj_<subset>_data."""
  classes, subsets = sorted(set(names.values())), {'train': 'train', 'val': 'valid'}
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'obj.names').write_text(''.join(f'{name}\n' for name in classes))
  lines = [f'classes = {len(classes)}']
  for split in dict.fromkeys(item.split for item in items):
    subset, own = subsets[split], [item for item in items if item.split == split]
    lines += [f'{subset} = data/{subset}.txt']
    for item in own:
      path = folder / f'obj_{subset}_data' / item.name
      copy(item, path)
      path.with_suffix('.txt').write_text('\n'.join(
        yolo_line(classes.index(label), item, bbox, [], False) for label, bbox, _ in item.objects))
    (folder / f'{subset}.txt').write_text(''.join(f'data/obj_{subset}_data/{item.name}\n' for item in own))
  (folder / 'obj.data').write_text('\n'.join([*lines, 'names = data/obj.names', 'backup = backup/\n']))


def ultralytics(items, names, folder, roboflow_paths=False):
  """YOLO with outlines: data.yaml, images/<split>, labels/<split>; or Roboflow's, <split>/images."""
  classes = sorted(set(names.values()))
  for item in items:
    split = ROBOFLOW_SPLITS[item.split]
    image = folder / (f'{split}/images' if roboflow_paths else f'images/{split}') / flat(item)
    label = folder / (f'{split}/labels' if roboflow_paths else f'labels/{split}') / flat(item)
    copy(item, image)
    if item.objects:  # an image without objects has no label file
      label.parent.mkdir(parents=True, exist_ok=True)
      label.with_suffix('.txt').write_text('\n'.join(
        yolo_line(classes.index(one[0]), item, *one[1:], outlines=True) for one in item.objects))
  if roboflow_paths:
    text = f'train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: {classes}\n'
  else:
    text = 'path: /home/somebody/datasets/things\ntrain: images/train\nval: images/valid\n\nnames:\n' + ''.join(
      f'  {i}: {name}\n' for i, name in enumerate(classes))
  (folder / 'data.yaml').write_text(text)


def labelme(items, names, folder, embed=False):
  """LabelMe: a JSON for each image, beside it or with the image inside; a folder for each split."""
  for item in items:
    path = folder / item.split / flat(item)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = None
    if embed:
      data = base64.b64encode(item.path.read_bytes()).decode()
    else:
      copy(item, path)
    shapes = []
    for i, (label, (x, y, w, h), segmentation) in enumerate(item.objects):
      common = {'label': label, 'description': '', 'flags': {}, 'mask': None}
      group = i if len(segmentation) > 1 else None
      shapes += [{**common, 'points': np.reshape(polygon, [-1, 2]).tolist(), 'group_id': group,
                  'shape_type': 'polygon'} for polygon in segmentation]
      if not segmentation:
        shapes.append({**common, 'points': [[x + w, y + h], [x, y]], 'group_id': None, 'shape_type': 'rectangle'})
    write_json(path.with_suffix('.json'), {
      'version': '5.4.1', 'flags': {}, 'shapes': shapes, 'imagePath': f'..\\images\\{flat(item)}', 'imageData': data,
      'imageHeight': item.size[0], 'imageWidth': item.size[1]})


def via(items, names, folder, version=2):
  """VIA: via_region_data.json beside the images of each split; version 1 with numbered regions."""
  for split in dict.fromkeys(item.split for item in items):
    entries = {}
    for item in (item for item in items if item.split == split):
      copy(item, folder / split / flat(item))
      regions = []
      for label, (x, y, w, h), segmentation in item.objects:
        shape = {'name': 'rect', 'x': x, 'y': y, 'width': w, 'height': h}
        if segmentation:
          shape = {'name': 'polygon', 'all_points_x': segmentation[0][::2], 'all_points_y': segmentation[0][1::2]}
        regions.append({'shape_attributes': shape, 'region_attributes': {'type': label}})
      size = item.path.stat().st_size
      entry = {'filename': flat(item), 'size': size, 'regions': regions, 'file_attributes': {}}
      if version == 1:
        entry |= {'fileref': '', 'base64_img_data': '', 'regions': {str(i): one for i, one in enumerate(regions)}}
      entries[f'{flat(item)}{size}'] = entry
    content = entries if version == 1 else {
      '_via_settings': {'ui': {}, 'core': {}, 'project': {'name': 'things'}}, '_via_img_metadata': entries,
      '_via_attributes': {'region': {'type': {'type': 'text'}}, 'file': {}}, '_via_data_format_version': '2.0.10',
      '_via_image_id_list': list(entries)}
    write_json(folder / split / 'via_region_data.json', content)


def label_studio(items, names, folder):
  """Label Studio's JSON export, with the images that were uploaded: rectangles and polygons in percent."""
  tasks = []
  for i, item in enumerate(items, start=1):
    copy(item, folder / 'upload/1' / f'{i:08x}-{flat(item)}')
    height, width = item.size
    results = []
    for label, bbox, segmentation in item.objects:
      kind = 'polygonlabels' if segmentation else 'rectanglelabels'
      x, y, w, h = np.array(bbox) / (width, height, width, height) * 100
      value = {'points': (np.reshape(segmentation[0], [-1, 2]) / (width, height) * 100).tolist(), 'closed': True} if (
        segmentation) else {'x': x, 'y': y, 'width': w, 'height': h, 'rotation': 0}
      results.append({'original_width': width, 'original_height': height, 'image_rotation': 0, 'id': f'r{len(results)}',
                      'value': value | {kind: [label]}, 'from_name': 'label', 'to_name': 'image', 'type': kind,
                      'origin': 'manual'})
    tasks.append({'id': i, 'annotations': [{'id': i, 'completed_by': 1, 'result': results, 'was_cancelled': False,
                                            'ground_truth': False}], 'file_upload': f'{i:08x}-{flat(item)}',
                  'data': {'image': f'/data/upload/1/{i:08x}-{flat(item)}'}, 'meta': {}, 'predictions': []})
  write_json(folder / 'project-1-at-2024-01-01.json', tasks)


def voc(items, names, folder):
  """PASCAL VOC's xml beside the images of each split, as Roboflow and labelImg write it: corners from 1, inclusive."""
  for item in items:
    path = folder / ROBOFLOW_SPLITS[item.split] / flat(item)
    copy(item, path)
    objects = ''.join(
      f'<object><name>{escape(label)}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>'
      f'<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>' for label, (x, y, w, h), _ in item.objects)
    path.with_suffix('.xml').write_text(
      f'<annotation><filename>{escape(flat(item))}</filename><path>C:\\data\\{escape(flat(item))}</path><size><width>'
      f'{item.size[1]}</width><height>{item.size[0]}</height><depth>3</depth></size>{objects}</annotation>')


def cvat(items, names, folder):
  """CVAT's own xml, "CVAT for images 1.1": outlines in one group, images in a folder for each subset."""
  images = []
  for i, item in enumerate(items):
    copy(item, folder / 'images' / item.split / flat(item))
    shapes = []
    for k, (label, (x, y, w, h), segmentation) in enumerate(item.objects, start=1):
      common = f'label={quoteattr(label)} source="manual" occluded="0" z_order="0"'
      shapes += [f'<polygon {common} points="{";".join(f"{a},{b}" for a, b in np.reshape(polygon, [-1, 2]).tolist())}" '
                 f'group_id="{k}"></polygon>' for polygon in segmentation]
      if not segmentation:
        shapes.append(f'<box {common} xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"><attribute name="a">1</attribute>'
                      '</box>')
    images.append(f'<image id="{i}" name={quoteattr(flat(item))} subset="{item.split.title()}" task_id="1" '
                  f'width="{item.size[1]}" height="{item.size[0]}">{"".join(shapes)}</image>')
  (folder / 'annotations.xml').write_text('<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
                                          f'<meta><project/></meta>{"".join(images)}</annotations>')


def cvat_video(items, names, folder):
  """CVAT's xml of videos, "CVAT for video 1.1", a task for each split: each object is a track of its frame alone."""
  for split in dict.fromkeys(item.split for item in items):
    own = [item for item in items if item.split == split]
    tracks = []
    for frame, item in enumerate(own):
      copy(item, folder / split / 'images' / f'frame_{frame:06d}{item.path.suffix}')
      for k, (label, (x, y, w, h), segmentation) in enumerate(item.objects, start=1):
        shapes = [('polygon', f'points="{";".join(f"{a},{b}" for a, b in np.reshape(polygon, [-1, 2]).tolist())}"')
                  for polygon in segmentation] or [('box', f'xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"')]
        for tag, place in shapes:
          elements = ''.join(f'<{tag} frame="{frame + outside}" keyframe="1" outside="{outside}" occluded="0" {place} '
                             f'z_order="0"></{tag}>' for outside in (0, 1)[:1 + (frame + 1 < len(own))])
          tracks.append(f'<track id="{len(tracks)}" label={quoteattr(label)} source="manual" group_id="{k}">{elements}'
                        '</track>')
    (folder / split / 'annotations.xml').write_text(
      '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta><task><id>1</id><mode>'
      f'interpolation</mode></task></meta>{"".join(tracks)}</annotations>')


def csv(items, names, folder, header=True):
  """Roboflow's tables beside the images of each split: TensorFlow's object detection, or keras-retinanet's."""
  for split in dict.fromkeys(item.split for item in items):
    lines = ['filename,width,height,class,xmin,ymin,xmax,ymax'] if header else []
    for item in (item for item in items if item.split == split):
      copy(item, folder / split / flat(item))
      for label, (x, y, w, h), _ in item.objects:
        corners = f'{x},{y},{x + w},{y + h}'
        lines.append(f'{flat(item)},{item.size[1]},{item.size[0]},{label},{corners}' if header else
                     f'{flat(item)},{corners},{label}')
      if not item.objects:
        lines.append(f'{flat(item)},,,,,' if not header else f'{flat(item)},{item.size[1]},{item.size[0]},,,,,')
    (folder / split / '_annotations.csv').write_text('\n'.join(lines) + '\n')


def wheat(items, names, folder):
  """The table of the Global Wheat Detection: boxes of one class in one column, images without suffix."""
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'train.csv', 'w', newline='') as file:
    table = writer(file)
    table.writerow(['image_id', 'width', 'height', 'bbox', 'source'])
    for item in items:
      copy(item, folder / 'train' / flat(item))
      table.writerows([flat(item).rpartition('.')[0], item.size[1], item.size[0], str([*map(float, box)]), 'usask_1']
                      for _, box, _ in item.objects)


def open_images(items, names, folder):
  """Open Images' tables, one a split, with the images in folders of the splits, and that of the class names."""
  (folder / 'annotations').mkdir(parents=True, exist_ok=True)
  codes = {name: f'/m/0{i}x_y' for i, name in enumerate(sorted(set(names.values())))}
  for split in dict.fromkeys(item.split for item in items):
    with open(folder / f'annotations/{OPEN_IMAGES_SPLITS[split]}-annotations-bbox.csv', 'w', newline='') as file:
      table = writer(file)
      table.writerow('ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,'
                     'IsDepiction,IsInside'.split(','))
      for item in (item for item in items if item.split == split):
        copy(item, folder / OPEN_IMAGES_SPLITS[split] / flat(item))
        for label, (x, y, w, h), _ in item.objects:
          height, width = item.size
          table.writerow([flat(item).rpartition('.')[0], 'xclick', codes[label], 1, x / width, (x + w) / width,
                          y / height, (y + h) / height, -1, 0, 0, 0, 0])
  with open(folder / 'annotations/class-descriptions-boxable.csv', 'w', newline='') as file:
    writer(file).writerows((code, name) for name, code in codes.items())


def numbered_masks(items, names, folder):
  """Masks of numbered instances, 16 bits, one an image, and classes.json."""
  classes = {}
  for item in items:
    copy(item, folder / 'images' / flat(item))
    mask = np.zeros(item.size, np.uint16)
    for i, (_, _, segmentation) in enumerate(item.objects, start=1):
      mask[rasterise(segmentation, item.size) > 0] = i + 300 * (i > 1)
    classes[flat(item)] = {str(i + 300 * (i > 1)): label for i, (label, _, _) in enumerate(item.objects, start=1)}
    path = folder / 'masks' / pathlib.Path(flat(item)).with_suffix('.png')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode('.png', mask)[1].tobytes())
  write_json(folder / 'masks/classes.json', classes)


def rasterise(segmentation, size):
  """Return the mask of a segmentation, uint8 [h, w]."""
  from pycocotools import mask as mask_api
  return mask_api.decode(to_rle(segmentation, *size))


def differences(items, prepared, by_split=True, masks=True, tolerance=0.01, bitmaps=False):
  """Return what differs between a data set and what was prepared from its export, in words.

  bitmaps: boxes may also be the extent of the pixels of their masks, among which are no tips thinner than a pixel.
  """
  splits = [split for split in ('train', 'val', 'test')
            if (pathlib.Path(prepared) / f'annotations/instances_{split}.json').exists()]
  found, _ = load(prepared, splits)
  by_content = {}
  for item in found:
    by_content.setdefault(item.path.read_bytes(), []).append(item)
  texts = [] if len(found) == len(items) else [f'{len(items)} images became {len(found)}']
  for item in items:
    same = by_content.get(item.path.read_bytes(), [])
    if not same:
      texts.append(f'{item.name}: no image with its bytes')
      continue
    if by_split and item.split not in {one.split for one in same} or same[0].size != item.size:
      texts.append(f'{item.name}: split {same[0].split}, size {same[0].size}')
    if len(same) == 1:
      texts += [f'{item.name}: {text}' for text in _compare(item, same[0], masks, tolerance, bitmaps)]
  return texts


def _compare(item, other, masks, tolerance, bitmaps):
  if len(item.objects) != len(other.objects):
    return [f'{len(item.objects)} objects became {len(other.objects)}']
  texts = []
  for (label, bbox, segmentation), (name, box, outline) in zip(item.objects, other.objects, strict=True):
    boxes = [bbox, *([cv2.boundingRect(rasterise(segmentation, item.size))] if bitmaps and segmentation else [])]
    if label != name or min(np.abs(np.subtract(one, box)).max() for one in boxes) > tolerance:
      texts.append(f'{label} {bbox} became {name} {box}')
    elif masks and segmentation:
      wrong = (rasterise(segmentation, item.size) != rasterise(outline, item.size)).sum()
      if wrong:
        texts.append(f'{label} {bbox}: {wrong} pixels of its mask differ')
  return texts
