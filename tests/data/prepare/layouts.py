"""The smallest annotation file of some layouts."""

COCO = {'images': [{'id': 1, 'file_name': 'a.jpg', 'height': 8, 'width': 9}],
        'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 2, 2], 'area': 4, 'iscrowd': 0}],
        'categories': [{'id': 1, 'name': 'cat'}]}
LABELME = {'shapes': [], 'imagePath': 'a.jpg', 'imageData': None}
VOC = '<annotation><filename>a.jpg</filename></annotation>'
