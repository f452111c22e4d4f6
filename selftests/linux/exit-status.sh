#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# expect: 7
exit 7
