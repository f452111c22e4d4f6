#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# prints: the last of 2000 lines
# A lot of output arrives whole and in order.
i=0
while [ $i -lt 1999 ]; do
	i=$((i + 1))
	echo "line $i of the console's output, which is somewhat long so that buffers fill up"
done
echo 'the last of 2000 lines'
